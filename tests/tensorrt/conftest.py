"""Where the wheels of TensorRT are kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def wheels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``EDGEDIFF_TENSORRT_WHEELS``, or a folder of pytest's cache if that is on."""
    if kept := os.environ.get("EDGEDIFF_TENSORRT_WHEELS"):
        return Path(kept)
    cache = getattr(request.config, "cache", None)
    return cache.mkdir("tensorrt") if cache else tmp_path_factory.mktemp("wheels")
