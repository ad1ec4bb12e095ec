"""Steps of a closed pipeline: what is on the host stays, and the engines of a device are not asked any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import edgediff
from edgediff.device.host import HostDevice
from edgediff.errors import EdgediffError, EngineError
from edgediff.generation.step import Step
from edgediff.pipeline import Pipeline

pytest.importorskip("edgediff_kernels", reason="edgediff-kernels is not installed")

USES: dict[str, Callable[[Step], Any]] = {
    "result": Step.result,
    "decode": Step.decode,
    "preview": Step.preview,
    "latents": lambda step: step.latents,
    "x0": lambda step: step.x0,
}


def closed(stop: int, kind: str = "pil") -> tuple[Step, Any]:
    """A step, the stream it is from, and their pipeline closed once ``stop`` steps were taken; 4 ends the stream."""
    pipe = Pipeline(edgediff.load().bundle, device=HostDevice())
    stream = pipe.stream("a red apple", seed=3, num_inference_steps=3, output_type=kind)
    for _, step in zip(range(stop), stream, strict=False):
        pass
    pipe.close()
    return step, stream


@pytest.mark.parametrize("use", USES)
def test_a_step_whose_values_are_on_the_device(use: str) -> None:
    step, stream = closed(3)
    with pytest.raises(EngineError, match="the device is closed"):
        USES[use](step)
    with pytest.raises(EngineError, match="the device is closed"):
        next(stream)


@pytest.mark.parametrize("use", ["result", "decode"])
def test_a_decoder_of_the_device(use: str) -> None:
    """The values are on the host, and the decoder's session holds the device's stream."""
    step, stream = closed(4)
    assert next(stream, None) is None
    with pytest.raises(EngineError, match="the device is closed"):
        USES[use](step)


def test_latents_that_are_on_the_host_stay() -> None:
    step, _ = closed(4, "latent")
    assert np.isfinite(step.result().latents).all()
    assert np.isfinite(step.x0).all()


def test_a_stream_goes_no_further() -> None:
    step, stream = closed(1)
    assert step.index == 0
    with pytest.raises(EdgediffError, match="the device is closed"):
        next(stream)
