"""The device's context is current in every call that needs one, and nothing is called after the end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edgediff.device.cuda import CudaDevice
from edgediff.errors import EngineError

from .stub.library import Stub
from .stub.on_stub import on_stub


def uses(device: CudaDevice) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every use of a device, each ready to be made in any thread."""
    address, graph, mark = device.allocate(16), device.capture(lambda: None), device.mark()
    values, extra = np.zeros(4, np.float32), device.allocate(16)
    yield "use", device.use
    yield "call", lambda: device.call(device.driver.cuMemsetD8Async, address, 0, 16, device.stream)
    yield "allocate", lambda: device.allocate(16)
    yield "upload", lambda: device.upload(address, values)
    yield "download", lambda: device.download(address, values)
    yield "capture", lambda: device.capture(lambda: None)
    yield "launch", lambda: device.launch(graph)
    yield "mark", device.mark
    yield "wait", lambda: device.wait(mark)
    yield "trim", device.trim
    yield "free", lambda: device.free(extra)


def in_thread(work: Callable[[], Any]) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


@on_stub()
def test_a_thread_that_has_no_context_is_given_it(stub: Stub) -> None:
    """Each method first in a thread of its own."""
    device = CudaDevice()
    for name, call in uses(device):
        in_thread(call)
        assert not stub.faults, name
    in_thread(device.close)
    assert not stub.faults


@on_stub(devices=2)
def test_a_thread_may_use_two_devices_in_turn(stub: Stub) -> None:
    first, second = CudaDevice(0), CudaDevice(1)
    for (name, call), (_, other) in zip(uses(first), uses(second), strict=True):
        other()
        call()
        assert not stub.faults, name
    in_thread(second.close)
    first.close()
    assert not stub.faults


@on_stub(devices=2)
def test_another_library_may_change_the_context(stub: Stub) -> None:
    """To another device's, or to none, between any two calls: the call is made, in the right context."""
    before = stub.allocated(), stub.allocated(pinned=True)
    device = CudaDevice(0)
    driver = device.driver
    theirs = device.call(driver.cuDevicePrimaryCtxRetain, 1)
    for other in (theirs, driver.CUcontext(0)):
        for _, call in uses(device):
            driver.cuCtxSetCurrent(other)
            call()
    places = {call.name: call.context for call in stub.calls if call.name in ("cuGraphLaunch", "cuMemcpyHtoDAsync")}
    assert set(places.values()) == {0}  # the last of each, which the driver took
    driver.cuCtxSetCurrent(theirs)
    device.close()
    assert (stub.allocated(), stub.allocated(pinned=True)) == before


@on_stub()
def test_after_the_end_every_method_is_refused_before_the_driver_is_asked(stub: Stub) -> None:
    before = stub.allocated(), stub.allocated(pinned=True)
    device = CudaDevice()
    calls = dict(uses(device))
    device.close()
    assert device.stream == 0
    assert (stub.allocated(), stub.allocated(pinned=True)) == before
    stub.clear()
    calls["kernels"] = lambda: device.kernels
    for name, call in calls.items():
        if name != "free":
            with pytest.raises(EngineError, match="the device is closed"):
                call()
            with pytest.raises(EngineError, match="the device is closed"):
                in_thread(call)
    calls["free"]()
    device.close()
    assert stub.count() == 0
    assert not stub.faults


@on_stub()
def test_an_end_that_fails_is_told_and_gives_back_what_it_can(stub: Stub) -> None:
    before = stub.allocated()
    device = CudaDevice()
    device.allocate(1 << 20)
    stub.fail("cuStreamSynchronize", code=719, times=1)
    with pytest.raises(EngineError, match="closing the device: "):
        device.close()
    stub.clear()
    with pytest.raises(EngineError, match="the device is closed"):
        device.mark()
    device.close()
    assert stub.count() == 0
    assert stub.allocated() == before


@on_stub()
def test_an_end_without_a_context_is_an_end(stub: Stub) -> None:
    before = stub.allocated(pinned=True)
    device = CudaDevice()
    stub.fail("cuCtxSetCurrent", code=719, times=1)
    with pytest.raises(EngineError, match="closing the device: "):
        device.close()
    stub.clear()
    with pytest.raises(EngineError, match="the device is closed"):
        device.mark()
    assert stub.allocated(pinned=True) == before


@on_stub()
def test_two_threads_may_close_it(stub: Stub) -> None:
    device = CudaDevice()
    found: list[Any] = []

    def other() -> None:
        try:
            device.close()
        except EngineError as error:
            found.append(str(error))

    with device.lock:
        threads = [threading.Thread(target=other) for _ in range(3)]
        for thread in threads:
            thread.start()
        threads[0].join(0.2)  # all of them wait
    for thread in threads:
        thread.join(10)
    assert not found
    assert not stub.faults


@on_stub()
def test_a_thread_that_waits_while_another_closes(stub: Stub) -> None:
    device = CudaDevice()
    found: list[Any] = []
    started = threading.Event()

    def other() -> None:
        try:
            while True:
                device.wait(device.mark())
                started.set()
        except EngineError as error:
            found.append(str(error))

    thread = threading.Thread(target=other)
    thread.start()
    started.wait(10)
    device.close()
    thread.join(10)
    assert found == ["the device is closed"]
    assert not stub.faults
