"""Captures: what a graph may hold, who may be in it, and how one that fails ends."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import numpy as np
import pytest

from edgediff.device.cuda import CudaDevice
from edgediff.device.memory import DeviceMemory
from edgediff.errors import EngineError

from .stub.library import Stub
from .stub.on_stub import on_stub


def check_usable(device: CudaDevice) -> None:
    """The stream runs, and captures."""
    address, out = device.allocate(16), np.empty(4, np.float32)
    device.upload(address, np.arange(4, dtype=np.float32))
    device.launch(device.capture(lambda: None))
    device.download(address, out)
    assert out.tolist() == [0, 1, 2, 3]
    device.free(address)


@on_stub()
def test_a_graph_does_again_what_was_enqueued_while_it_was_captured(stub: Stub) -> None:
    device = CudaDevice()
    address = device.allocate(4)

    def work() -> None:
        device.call(device.driver.cuMemsetD8Async, address, 7, 4, device.stream)

    graph = device.capture(work)
    assert ctypes.string_at(address, 4) == bytes(4)
    for _ in range(2):
        device.upload(address, np.zeros(4, np.uint8))
        device.launch(graph)
        assert ctypes.string_at(address, 4) == b"\7" * 4
    device.close()
    assert not stub.faults


@on_stub()
def test_what_a_graph_cannot_hold_is_refused_before_the_driver_is_asked(stub: Stub) -> None:
    device = CudaDevice()
    address, graph, mark = device.allocate(16), device.capture(lambda: None), device.mark()
    values = np.zeros(4, np.float32)
    done: list[Any] = []

    def work() -> None:
        device.use()  # engines do
        stub.clear()
        for call in (
            lambda: device.allocate(16),
            lambda: device.upload(address, values),
            lambda: device.download(address, values),
            lambda: device.launch(graph),
            lambda: device.wait(mark),
            lambda: device.capture(lambda: None),
            device.mark,
            device.trim,
            device.close,
        ):
            with pytest.raises(EngineError, match="a captured graph cannot hold it"):
                call()
        done.extend(stub.names)

    device.launch(device.capture(work))
    assert done == []
    check_usable(device)
    device.close()
    assert not stub.faults


@on_stub()
def test_memory_that_is_freed_in_a_capture_goes_at_its_end(stub: Stub) -> None:
    """The collector may close a forgotten stream there, and with it a loop."""
    device = CudaDevice()
    before = stub.allocated()
    memory, kept = DeviceMemory(device), device.allocate(16)
    for name in "abc":
        memory.reserve(name, 1 << 20)

    def work() -> None:
        stub.clear()
        memory.close()
        assert not stub.count()

    device.launch(device.capture(work))
    device.free(kept)
    assert stub.allocated() == before
    address = device.allocate(16)
    with pytest.raises(EngineError, match="division by zero"):
        device.capture(lambda: (device.free(address), 1 / 0))
    assert stub.allocated() == before
    check_usable(device)
    device.close()
    assert not stub.faults


@on_stub()
def test_a_capture_holds_nobody_elses_work(stub: Stub) -> None:
    device = CudaDevice()
    place, mark = device.allocate(16), device.mark()
    done: list[Any] = []

    def other() -> None:
        out = np.empty(4, np.float32)
        device.upload(place, np.arange(4, dtype=np.float32))
        device.mark()
        device.free(device.allocate(16))
        device.download(place, out)
        done.append(out.tolist())

    thread = threading.Thread(target=other)

    def work() -> None:
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()

    graph = device.capture(work)
    thread.join()
    assert done == [[0, 1, 2, 3]]
    stub.clear()
    device.launch(graph)
    assert not [line for line in stub.lines if line.startswith("runs")]  # the graph is empty
    device.wait(mark)
    device.close()
    assert not stub.faults


@on_stub()
def test_another_thread_may_wait_during_a_capture(stub: Stub) -> None:
    device = CudaDevice()
    mark = device.mark()
    done: list[bool] = []

    def other() -> None:
        device.wait(mark)
        done.append(True)

    def work() -> None:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(10)

    device.capture(work)
    assert done
    device.close()
    assert not stub.faults


@on_stub()
def test_a_capture_that_fails_is_ended(stub: Stub) -> None:
    device = CudaDevice()
    graph = device.capture(lambda: None)
    for name in ("cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiateWithParams"):
        stub.fail(name, code=901, times=1)
        with pytest.raises(EngineError, match="capturing a CUDA graph: ") as held:
            device.capture(lambda: None)
        check_usable(device)  # while the error still holds what was captured by
        assert held.value

    def fails() -> None:
        raise ValueError("no")

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(EngineError, match="capturing a CUDA graph: no"):
        device.capture(fails)
    check_usable(device)
    with pytest.raises(KeyboardInterrupt):
        device.capture(interrupted)
    check_usable(device)
    device.launch(graph)
    device.close()
    assert not stub.faults


@on_stub()
def test_a_capture_that_was_invalidated_is_ended(stub: Stub) -> None:
    """By what an engine does behind the device's back, as waiting for the stream."""
    device = CudaDevice()

    def work() -> None:
        device.driver.cuStreamSynchronize(device.stream)

    with pytest.raises(EngineError, match="capturing a CUDA graph: "):
        device.capture(work)
    check_usable(device)
    assert stub.faults == ["FAULT a capturing stream is waited for"]
    device.close()
