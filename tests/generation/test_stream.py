"""A stream in the hands of several threads, of a hook, and of a task that is cancelled."""

from __future__ import annotations

import asyncio
import collections.abc
import copy
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgediff
from edgediff import ArgumentError, CopyError
from edgediff.examples.service import Service


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Path) -> edgediff.Pipeline:
    return edgediff.load(tiny_bundle).warm()


def held(pipe: edgediff.Pipeline, steps: int = 3) -> tuple[Any, threading.Event, threading.Event]:
    """A stream whose first step waits; set when it is in it, and to let it go on."""
    inside, go = threading.Event(), threading.Event()

    def hook(x0: Any) -> Any:
        inside.set()
        assert go.wait(30)
        return x0

    return pipe.stream("a cat", seed=1, sampler="ddim", num_inference_steps=steps, on_x0=hook), inside, go


def test_two_readers_at_once_are_a_typed_error_and_the_run_goes_on(pipe: edgediff.Pipeline) -> None:
    stream, inside, go = held(pipe)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(next, stream)
        assert inside.wait(30)
        for use in (lambda: next(stream), stream.close, lambda: stream.throw(KeyError())):
            with pytest.raises(ArgumentError, match="this stream is in a step already; read it from one thread"):
                use()
        go.set()
        assert first.result().index == 0
    rest = list(stream)
    assert [s.index for s in rest] == [1, 2]
    same = pipe("a cat", seed=1, sampler="ddim", num_inference_steps=3, on_x0=lambda x0: x0)
    np.testing.assert_array_equal(rest[-1].latents, same.latents)


def test_a_hook_that_asks_for_its_own_step(pipe: edgediff.Pipeline) -> None:
    streams: list[Any] = []
    stream = pipe.stream("a cat", seed=1, num_inference_steps=2, on_x0=lambda x0: next(streams[0]))
    streams.append(stream)
    with pytest.raises(ArgumentError, match="in a step already"):
        next(stream)


def test_a_stream_is_a_generator(pipe: edgediff.Pipeline) -> None:
    stream = pipe.stream("a cat", seed=1, num_inference_steps=3)
    assert isinstance(stream, collections.abc.Generator)
    with closing(stream):
        assert next(stream).index == 0
    assert list(stream) == []
    with pytest.raises(KeyError):
        pipe.stream("a cat", num_inference_steps=1).throw(KeyError("mine"))


def test_letting_a_stream_go_cancels(pipe: edgediff.Pipeline) -> None:
    stream = pipe.stream("a cat", seed=1, num_inference_steps=3)
    next(stream)
    inner: Any = stream
    running = weakref.ref(inner._steps)
    del stream, inner
    gc.collect()
    assert running() is None


def test_a_pipeline_is_not_copied(pipe: edgediff.Pipeline) -> None:
    for how in (copy.copy, copy.deepcopy):
        with pytest.raises(CopyError, match=r"load\(\) one in each process"):
            how(pipe)


def test_a_cancelled_task_stops_after_the_call_that_it_is_in(tiny_bundle: Path) -> None:
    """The example's service: of forty U-Net calls one or two are made."""
    pipe, calls, inside = edgediff.load(tiny_bundle), [], threading.Event()

    def hook(x0: Any) -> Any:
        calls.append(1)
        inside.set()
        return x0

    async def cancelled() -> None:
        with ThreadPoolExecutor(2) as threads:
            service = Service(pipe, threads)
            drawing = service.draw("a cat", lambda step: None, num_inference_steps=40, on_x0=hook)
            task = asyncio.create_task(drawing)
            while not inside.is_set():
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancelled())
    assert 1 <= len(calls) < 20
