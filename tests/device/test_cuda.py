"""``CudaDevice`` by the real cuda-core, over a stub of NVIDIA's driver: order, memory, marks, failures."""

from __future__ import annotations

import ctypes
import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest

from edgediff.device.cuda import CudaDevice
from edgediff.errors import ArgumentError, EngineError

from .stub.library import Stub
from .stub.on_stub import on_stub


def fetched(device: CudaDevice, address: int, count: int = 4) -> list[float]:
    out = np.empty(count, np.float32)
    device.download(address, out)
    return out.tolist()


def in_memory(address: int, count: int = 1) -> list[int]:
    """What lies there now; the stub's device memory is the host's."""
    return list(ctypes.string_at(address, count))


@on_stub()
def test_what_it_says_of_the_gpu(stub: Stub) -> None:
    device = CudaDevice()
    assert (device.name, device.compute_capability, device.driver_version) == ("Stub GPU 0", (9, 0), (13, 0))
    assert (device.multiprocessors, device.threads_per_multiprocessor) == (132, 2048)
    assert device.stream > 0
    device.close()
    assert not stub.faults


@on_stub()
def test_fresh_memory_is_zero_and_aligned(stub: Stub) -> None:
    device = CudaDevice()
    for size in (0, 1, 1000, 1 << 20):
        address = device.allocate(size)
        assert address % 256 == 0
        assert not any(fetched(device, address, max(size // 4, 1)))
    device.close()
    assert not stub.faults


@on_stub()
def test_nothing_waits_but_downloads_waits_and_trims(stub: Stub) -> None:
    device = CudaDevice()
    address = device.allocate(4000)
    graph = device.capture(lambda: None)
    stub.clear()
    device.upload(address, np.zeros(1000, np.float32))
    device.launch(graph)
    device.mark()
    device.free(device.allocate(4000))
    assert not [name for name in stub.names if "Synchronize" in name or "Query" in name]
    device.close()


@on_stub()
def test_memory_lives_while_a_copy_may_write_there(stub: Stub) -> None:
    """A wait that fails does not undo the copy."""
    device = CudaDevice()
    address, out = device.allocate(4000), np.zeros(1000, np.float32)
    alive = weakref.ref(out)
    stub.late()
    stub.fail("cuStreamSynchronize", times=1)
    with pytest.raises(EngineError, match="waiting for the device"):
        device.download(address, out)
    del out
    gc.collect()
    assert alive() is not None
    assert fetched(device, address, 1000) == [0] * 1000
    gc.collect()
    assert alive() is None
    device.close()
    assert not stub.faults


@on_stub()
def test_a_mark_waits_for_what_was_enqueued_before_it(stub: Stub) -> None:
    device = CudaDevice()
    first, second = device.allocate(4), device.allocate(4)
    fetched(device, first, 1)
    stub.late()
    device.upload(first, np.full(4, 1, np.uint8))
    mark = device.mark()
    device.upload(second, np.full(4, 2, np.uint8))
    assert in_memory(first) + in_memory(second) == [0, 0]
    device.wait(mark)
    assert in_memory(first) + in_memory(second) == [1, 0]
    device.close()
    assert not stub.faults


@on_stub()
def test_marks_are_used_again_and_block(stub: Stub) -> None:
    device = CudaDevice()
    device.wait(device.mark())
    stub.clear()
    marks: list[Any] = []
    for _ in range(100):
        if len(marks) == 2:
            device.wait(marks.pop(0))
        marks.append(device.mark())
    created = [call for call in stub.calls if call.name == "cuEventCreate"]
    assert len(created) == 1
    assert created[0].details["flags"] == "3"  # CU_EVENT_BLOCKING_SYNC, CU_EVENT_DISABLE_TIMING
    device.close()


@on_stub()
def test_a_step_is_three_calls(stub: Stub) -> None:
    """Ahead of the device by a bounded number of steps: wait, launch, mark. No other call, as of contexts."""
    device = CudaDevice()
    graph, marks = device.capture(lambda: None), [device.mark(), device.mark()]
    device.wait(device.mark())
    stub.clear()
    for _ in range(20):
        device.wait(marks.pop(0))
        device.launch(graph)
        marks.append(device.mark())
    assert stub.names == ["cuEventSynchronize", "cuGraphLaunch", "cuEventRecord"] * 20
    device.close()


@on_stub()
def test_an_upload_is_one_call(stub: Stub) -> None:
    device = CudaDevice()
    address = device.allocate(1 << 20)
    stub.clear()
    for size in (1, 5000, 100_000):
        device.upload(address, np.zeros(size, np.uint8))
    assert stub.names == ["cuMemcpyHtoDAsync"] * 3
    device.close()


@on_stub()
def test_trimming_gives_freed_memory_back(stub: Stub) -> None:
    device = CudaDevice()
    device.free(device.allocate(1 << 20))
    assert stub.reserved >= 1 << 20
    stub.clear()
    device.trim()
    assert stub.reserved == 0
    assert stub.names.index("cuEventSynchronize") < stub.names.index("cuMemPoolTrimTo")
    device.close()
    assert not stub.faults


@on_stub(pools=False)
def test_a_device_without_memory_pools(stub: Stub) -> None:
    device = CudaDevice()
    address = device.allocate(16)
    device.upload(address, np.arange(4, dtype=np.float32))
    assert fetched(device, address) == [0, 1, 2, 3]
    device.free(address)
    device.trim()
    assert not stub.count("cuMemPoolTrimTo")
    device.close()
    assert stub.allocated() == 0
    assert not stub.faults


@on_stub()
def test_failures_are_typed_and_name_the_call(stub: Stub) -> None:
    before = stub.allocated()
    device = CudaDevice()
    address, graph, mark = device.allocate(16), device.capture(lambda: None), device.mark()
    values = np.zeros(4, np.float32)
    for name, call, message in (
        ("cuMemAllocFromPoolAsync", lambda: device.allocate(1 << 20), r"allocating 1\.0 MB on CUDA device 0"),
        ("cuMemsetD8Async", lambda: device.allocate(16), "cuMemsetD8Async gave CUDA_ERROR_UNKNOWN"),
        (
            "cuMemcpyHtoDAsync",
            lambda: device.upload(address, values),
            "copying to the device: cuMemcpyHtoDAsync gave CUDA_ERROR_UNKNOWN",
        ),
        ("cuMemcpyDtoHAsync", lambda: device.download(address, values), "cuMemcpyDtoHAsync gave CUDA_ERROR_UNKNOWN"),
        ("cuStreamSynchronize", lambda: device.download(address, values), "waiting for the device: ERROR_999"),
        ("cuGraphLaunch", lambda: device.launch(graph), "launching a CUDA graph: ERROR_999"),
        ("cuEventRecord", device.mark, "marking the stream: ERROR_999"),
        ("cuEventSynchronize", lambda: device.wait(mark), "waiting for the device: ERROR_999"),
        ("cuMemPoolTrimTo", device.trim, "cuMemPoolTrimTo gave CUDA_ERROR_UNKNOWN"),
        ("cuCtxSetCurrent", device.use, "turning to CUDA device 0"),
    ):
        stub.fail(name)
        with pytest.raises(EngineError, match=message):
            call()
        stub.clear()
    gc.collect()
    held = stub.allocated()
    device.upload(address, np.arange(4, dtype=np.float32))
    assert fetched(device, address) == [0, 1, 2, 3]
    device.wait(mark)
    device.launch(graph)
    device.close()
    assert held == before + 256  # what failed to be cleared was given back
    assert not stub.faults


@on_stub()
def test_bad_arguments_are_typed(stub: Stub) -> None:
    device = CudaDevice()
    with pytest.raises(ArgumentError, match="contiguous"):
        device.download(device.allocate(64), np.zeros((4, 4), np.float32)[:, ::2])
    with pytest.raises(EngineError, match="nothing is allocated at 12345"):
        device.free(12345)
    device.close()


@on_stub()
def test_a_call_gives_what_the_function_gives(stub: Stub) -> None:
    device = CudaDevice()
    driver = device.driver
    assert device.call(driver.cuDriverGetVersion) == 13000
    assert device.call(driver.cuCtxGetStreamPriorityRange) == (0, -5)
    assert device.call(driver.cuStreamSynchronize, device.stream) is None
    with pytest.raises(EngineError, match="cuDeviceGet gave CUDA_ERROR_INVALID_DEVICE"):
        device.call(driver.cuDeviceGet, 99)
    device.close()


@on_stub()
def test_threads_share_a_device(stub: Stub) -> None:
    device = CudaDevice()
    wrong: list[Any] = []

    def work(mine: int) -> None:
        try:
            address = device.allocate(4000)
            for k in range(50):
                device.upload(address, np.full(1000, mine + k, np.float32))
                device.launch(device.capture(lambda: None))
                mark = device.mark()
                if (got := set(fetched(device, address, 1000))) != {mine + k}:
                    wrong.append(got)
                device.wait(mark)
            device.free(address)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(1000 * k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    device.close()
    assert not wrong
    assert not stub.faults
