"""Where the wheels of TensorRT are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def wheels(request: pytest.FixtureRequest) -> Path:
    """``EDGEDIFF_TENSORRT_WHEELS``, or a folder of pytest's cache."""
    kept = os.environ.get("EDGEDIFF_TENSORRT_WHEELS")
    return Path(kept) if kept else request.config.cache.mkdir("tensorrt")
