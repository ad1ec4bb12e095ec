"""TensorRT stood in for, an empty engine cache, and where the wheels of the real one are kept."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgediff.device import driver
from edgediff.engines.tensorrt import installed
from edgediff.engines.tensorrt.cache import EngineCache

STANDIN = Path(__file__).parent / "standin"
MODULES = ("tensorrt", *(f"edgediff.engines.tensorrt.{name}" for name in ("engine", "context", "log")))
GPU = driver.Gpu(0, "Stand-in GPU", (8, 7), 1 << 33, True, (12, 6))


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """TensorRT's stand-in, here and in child processes, and a driver that knows one GPU."""
    monkeypatch.syspath_prepend(str(STANDIN))
    monkeypatch.setenv("PYTHONPATH", f"{STANDIN}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("EDGEDIFF_STANDIN_STEP", "0")
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    installed.module.cache_clear()
    monkeypatch.setattr(installed, "probe", lambda ordinal: GPU)
    yield importlib.import_module("tensorrt")
    installed.module.cache_clear()
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "cache")


@pytest.fixture(scope="session")
def wheels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``EDGEDIFF_TENSORRT_WHEELS``, or a folder of pytest's cache if that is on."""
    if kept := os.environ.get("EDGEDIFF_TENSORRT_WHEELS"):
        return Path(kept)
    cache = getattr(request.config, "cache", None)
    return cache.mkdir("tensorrt") if cache else tmp_path_factory.mktemp("wheels")
