"""A call's deadline: looked at between steps and around parts, on the host's loop and on a device's."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import edgediff
from edgediff.errors import ArgumentError, DeadlineError
from edgediff.generation.watch import check_deadline
from edgediff.pipeline import Pipeline

from ..support.host_device import CountingDevice

CALL: dict[str, Any] = {"prompt": "a cat", "seed": 1, "num_inference_steps": 20, "sampler": "ddim"}


class Timed:
    """A part that takes a second a call, by a clock that nothing else moves."""

    def __init__(self, engine: Any, clock: list[float]) -> None:
        self.engine, self.inputs, self.outputs = engine, engine.inputs, engine.outputs
        self.clock, self.calls = clock, 0
        if hasattr(engine, "enqueue"):
            self.capture, self.warm_runs, self.key = "never", 0, None  # a check would take two calls a step
            self.enqueue = self._enqueue

    def _enqueue(self, *args: Any) -> None:
        self._tick()
        self.engine.enqueue(*args)

    def __call__(self, **inputs: Any) -> Any:
        self._tick()
        return self.engine(**inputs)

    def _tick(self) -> None:
        self.clock[0] += 1
        self.calls += 1


def timed(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> tuple[Pipeline, list[float], dict[str, Timed]]:
    """A pipeline whose parts are timed, on a clock that begins at some time."""
    clock = [1000.0]
    monkeypatch.setattr("edgediff.generation.watch.time", SimpleNamespace(monotonic=lambda: clock[0]))
    parts = {part: Timed(pipe.engine(part), clock) for part in ("text_encoder", "unet", "vae_decoder")}
    for part, engine in parts.items():
        pipe.set_engine(part, engine)
    return pipe, clock, parts


@pytest.fixture
def tiny(tiny_bundle: Path) -> Pipeline:
    return edgediff.load(tiny_bundle, threads=1)


def on_a_device(pipe: Pipeline) -> Pipeline:
    pytest.importorskip("edgediff_kernels", reason="edgediff-kernels is not installed")
    return Pipeline(pipe.bundle, device=CountingDevice())


@pytest.mark.parametrize("device", [False, True])
def test_between_steps(tiny: Pipeline, monkeypatch: pytest.MonkeyPatch, device: bool) -> None:
    pipe, _, parts = timed(on_a_device(tiny) if device else tiny, monkeypatch)
    said = r"^the call was stopped at step 5 of 20 after 7\.0 s; its deadline is 6\.5 s$"  # two calls read the texts
    with pytest.raises(DeadlineError, match=said) as caught:
        pipe(**CALL, deadline=6.5)
    assert isinstance(caught.value, TimeoutError)
    assert [engine.calls for engine in parts.values()] == [2, 5, 0]
    assert pipe(**CALL, deadline=23.5).images  # the pipeline goes on, with time for 2 + 20 + 1 calls
    assert [engine.calls for engine in parts.values()] == [4, 25, 1]


def test_around_parts(tiny: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, _, parts = timed(tiny, monkeypatch)
    with pytest.raises(DeadlineError, match=r"stopped at the encoded prompts after 2\.0 s; its deadline is 1\.5 s"):
        pipe(**CALL, deadline=1.5)
    assert parts["unet"].calls == 0
    with pytest.raises(DeadlineError, match=r"stopped at step 20 of 20 after 22\.0 s"):
        pipe(**CALL, deadline=21.5)
    assert parts["vae_decoder"].calls == 0
    latents = pipe(**CALL, deadline=21.5, output_type="latent").latents  # they are there, and are given
    np.testing.assert_array_equal(latents, pipe(**CALL, output_type="latent").latents)


def test_a_streams_time_begins_with_its_first_step_and_is_the_consumers_too(
    tiny: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, clock, parts = timed(tiny, monkeypatch)
    steps = pipe.stream(**CALL, deadline=100)
    clock[0] += 1000  # nothing has been asked for
    next(steps)
    clock[0] += 98  # what the consumer does with a step
    with pytest.raises(DeadlineError, match=r"stopped at step 1 of 20 after 101\.0 s"):
        next(steps)
    assert parts["unet"].calls == 1
    *_, last = pipe.stream(**CALL, deadline=100)
    clock[0] += 100
    with pytest.raises(DeadlineError, match=r"stopped at step 20 of 20"):
        last.result()


def test_a_picture_says_nothing_of_it(tiny: Pipeline) -> None:
    """In time, it changes nothing."""
    found, plain = (tiny(**CALL, **more) for more in ({"deadline": 1e6}, {}))
    assert found.parameters == plain.parameters
    np.testing.assert_array_equal(found.latents, plain.latents)


@pytest.mark.parametrize(
    "value",
    [0, -1, math.nan, math.inf, "3", True, 10**5000, [1.0], np.float32("nan"), np.ones(2), 1j],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_time_is_refused_before_any_work(tiny: Pipeline, value: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^deadline is .*; it must be a positive number of seconds$"):
        tiny.stream(**CALL, deadline=value)


def test_times_of_numpy_are_times() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [check_deadline(kind(5)) for kind in (np.float16, np.float32, np.int64)] == [5.0] * 3
