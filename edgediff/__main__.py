"""``python -m edgediff``."""

import sys

from .cli import main

sys.exit(main())
