"""``CudaDevice`` on a stand-in for cuda-core whose copies run late, as where the GPU reads the host's memory itself."""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgediff.device import cuda as devices
from edgediff.device.cuda import CudaDevice
from edgediff.errors import ArgumentError, EngineError


class Gpu:
    """A stream whose work is done when it is waited for."""

    def __init__(self) -> None:
        self.work: list[Callable[[], Any]] = []
        self.passed = self.enqueued = 0
        self.blocks: dict[int, Any] = {}
        self.capturing = False

    def enqueue(self, work: Callable[[], Any]) -> None:
        assert not self.capturing
        self.work.append(work)
        self.enqueued += 1

    def finish(self) -> None:
        for work in self.work:
            work()
        self.passed += len(self.work)
        self.work.clear()

    def allocate(self, size: int, stream: Any) -> Any:
        assert not self.capturing
        block = np.ones(size, np.uint8)
        self.blocks[block.ctypes.data] = block
        return SimpleNamespace(handle=block.ctypes.data, close=lambda stream: self.blocks.pop(block.ctypes.data))

    def copy(self, to: int, source: int, size: int, stream: int) -> tuple[int]:
        self.enqueue(lambda: ctypes.memmove(to, source, size))
        return (0,)

    def fill(self, to: int, value: int, size: int, stream: int) -> tuple[int]:
        self.enqueue(lambda: ctypes.memset(to, value, size))
        return (0,)

    def record(self) -> Any:
        at = self.enqueued
        gpu = self

        class Mark:
            is_done = property(lambda self: gpu.passed >= at)

        return Mark()

    def builder(self) -> Any:
        def begin(mode: str) -> None:
            assert mode == "thread_local"
            self.capturing = True

        def end() -> Any:
            self.capturing = False
            return SimpleNamespace(complete=lambda: "graph")

        return SimpleNamespace(begin_building=begin, end_building=end, close=end)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    stream = SimpleNamespace(
        handle=7, sync=gpu.finish, record=gpu.record, create_graph_builder=gpu.builder, close=lambda: None
    )
    core = SimpleNamespace(
        set_current=lambda: None,
        create_stream=lambda: stream,
        allocate=gpu.allocate,
        properties=SimpleNamespace(multiprocessor_count=132, max_threads_per_multiprocessor=2048),
        name="stand-in",
    )
    driver = SimpleNamespace(
        cuMemsetD8Async=gpu.fill,
        cuMemcpyHtoDAsync=gpu.copy,
        cuMemcpyDtoHAsync=gpu.copy,
        CUresult=SimpleNamespace(CUDA_SUCCESS=0),
    )
    for name, values in {"cuda.bindings": {"driver": driver}, "cuda.core": {"Device": lambda k: core}}.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    kernels = SimpleNamespace(device_count=lambda: 1, CudaError=RuntimeError)
    monkeypatch.setattr(devices, "require_package", lambda: kernels)
    return gpu


def test_what_is_uploaded_may_change_and_go_at_once(gpu: Gpu) -> None:
    device = CudaDevice(0)
    expected = [np.full(1000, k, np.float32) for k in range(20)]
    places = [device.allocate(4000) for _ in expected]
    header = np.empty(1000, np.float32)
    for k, (place, values) in enumerate(zip(places, expected, strict=True)):
        header[:] = values
        device.upload(place, header if k % 2 else values.astype(np.float64).astype(np.float32))
    header[:] = np.nan
    for place, values in zip(places, expected, strict=True):
        out = np.empty(1000, np.float32)
        device.download(place, out)
        np.testing.assert_array_equal(out, values)
    assert not device._sent


def test_what_has_been_copied_is_let_go(gpu: Gpu) -> None:
    device = CudaDevice(0)
    place = device.allocate(4000)
    for k in range(5):
        device.upload(place, np.zeros(1000, np.float32))
        assert len(device._sent) == k + 1
    gpu.finish()
    device.upload(place, np.zeros(1000, np.float32))
    assert len(device._sent) == 1


def test_a_capture_holds_nobody_elses_work(gpu: Gpu) -> None:
    device = CudaDevice(0)
    place = device.allocate(16)
    done: list[np.ndarray] = []

    def other() -> None:
        out = np.empty(4, np.float32)
        device.upload(place, np.arange(4, dtype=np.float32))
        device.mark()
        device.free(device.allocate(16))
        device.download(place, out)
        done.append(out)

    thread = threading.Thread(target=other)

    def work() -> None:
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()

    assert device.capture(work) == "graph"
    thread.join()
    np.testing.assert_array_equal(done[0], np.arange(4))


def test_failures_are_typed_and_end_the_capture(gpu: Gpu) -> None:
    device = CudaDevice(0)

    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(EngineError, match="capturing a CUDA graph: no"):
        device.capture(fails)
    assert not gpu.capturing
    device._driver.cuMemcpyHtoDAsync = lambda *args: (SimpleNamespace(name="CUDA_ERROR_INVALID_VALUE"),)
    device._driver.cuMemcpyHtoDAsync.__name__ = "cuMemcpyHtoDAsync"
    with pytest.raises(EngineError, match="cuMemcpyHtoDAsync gave CUDA_ERROR_INVALID_VALUE"):
        device.upload(0, np.zeros(1))
    device.close()
    assert not gpu.blocks
    with pytest.raises(ArgumentError, match=r"device is 1; this machine has 0 \.\. 0"):
        CudaDevice(1)
