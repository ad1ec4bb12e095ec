"""Whether TensorRT can run here, asked in an order in which nothing can crash."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from edgediff.engines.tensorrt import installed
from edgediff.engines.tensorrt.cache import EngineCache
from edgediff.errors import EngineError

from ...support.gpu import has_driver
from .helpers import opened


def test_too_old(standin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standin, "__version__", "8.6.1")
    with pytest.raises(EngineError, match=r"TensorRT 8\.6\.1 is too old; edgediff needs 10\.3 or newer"):
        installed.this_platform(0)


def test_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    installed.module.cache_clear()
    with pytest.raises(EngineError, match="tensorrt is installed and cannot be loaded: OSError: libnvinfer"):
        installed.version()
    installed.module.cache_clear()


@pytest.mark.skipif(has_driver(), reason="there is a driver here")
def test_no_driver_is_said_before_tensorrt_is_touched(half_bundle: Path, cache: EngineCache) -> None:
    with pytest.raises(EngineError, match="no NVIDIA driver"):
        installed.this_platform(0)
    assert "tensorrt" not in sys.modules
    pipe, _ = opened(half_bundle, cache, "tensorrt")
    with pytest.raises(EngineError, match="unet cannot run by TensorRT: no NVIDIA driver"):
        pipe.engine("unet")
