"""What is captured of TensorRT's work, over the stand-in: nothing when told so, and nothing while an engine opens."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from edgediff.bundle.reading import read_bundle
from edgediff.engines.base import EngineOptions
from edgediff.engines.tensorrt.cache import EngineCache
from edgediff.pipeline import Pipeline

from ...support.host_device import CountingDevice
from .helpers import PROMPT, build_all, opened


def test_nothing_is_captured_when_told_so_or_while_an_engine_opens(
    standin: Any, half_bundle: Path, cache: EngineCache
) -> None:
    build_all(half_bundle, cache)
    pipe, device = opened(half_bundle, cache, "tensorrt")
    options = EngineOptions(engine="tensorrt", engine_cache=cache.folder, cuda_graphs=False)
    plain = Pipeline(read_bundle(half_bundle), options, calls := CountingDevice())
    call: dict[str, Any] = {"prompt": PROMPT, "seed": 3, "num_inference_steps": 6, "output_type": "latent"}
    np.testing.assert_array_equal(pipe(**call).latents, plain(**call).latents)
    assert device.calls["launch"] == 5
    assert calls.calls["launch"] == calls.calls["capture"] == 0

    other, _ = opened(half_bundle, cache, "tensorrt")
    done = threading.Event()
    thread = threading.Thread(target=lambda: (other.engine("unet"), done.set()))
    with other._device.lock:  # type: ignore[union-attr]  # as a capture of another thread holds it
        thread.start()
        assert not done.wait(0.5)
    assert done.wait(30)
    thread.join()
