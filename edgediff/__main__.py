"""``python -m edgediff``."""

import sys

from .cli.main import main

sys.exit(main())
