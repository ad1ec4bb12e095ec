"""The built-in model in fp32, as its source has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def emoji_fp32(shared: Callable[..., Path]) -> Path:
    from edgediff_export.convert import export

    from .cases import PIPELINE

    return shared("emoji", lambda root: export(PIPELINE, root / "bundle", precision="fp32")) / "bundle"
