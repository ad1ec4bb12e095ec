"""The stub by itself: it refuses what a driver refuses, and loads and launches what cuda-core gives it."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from .library import Stub
from .on_stub import on_stub

SOURCE = 'extern "C" __global__ void fill(float* to, float value) { to[threadIdx.x] = value; }'


def opened() -> tuple[Any, Any, Any]:
    from cuda.bindings import driver
    from cuda.core import Device

    device = Device(0)
    device.set_current()
    return driver, device, device.create_stream()


@on_stub()
def test_kernels_are_loaded_launched_and_captured(stub: Stub) -> None:
    from cuda.core import ObjectCode, Program, ProgramOptions

    driver, device, stream = opened()
    try:
        compiled = Program(SOURCE, "c++", ProgramOptions(arch="sm_90")).compile("cubin")
    except Exception as error:
        pytest.skip(f"there is no NVRTC here: {error}")
    code = ObjectCode.from_cubin(compiled.code)
    function = driver.CUfunction(int(code.get_kernel("fill").handle))
    with pytest.raises(Exception, match=r"NOT_FOUND|ERROR_500"):
        code.get_kernel("another")
    buffer = device.allocate(1024, stream=stream)
    held = [np.array(int(buffer.handle), np.uint64), np.array(2, np.float32)]
    places = (ctypes.c_void_p * 2)(*(value.ctypes.data for value in held))

    def launch() -> Any:
        return driver.cuLaunchKernel(function, 3, 2, 1, 256, 1, 1, 0, stream.handle, ctypes.addressof(places), 0)[0]

    assert launch() == 0
    builder = stream.create_graph_builder().begin_building("thread_local")
    assert launch() == 0
    graph = builder.end_building().complete()
    stub.clear()
    graph.launch(stream)
    assert stub.lines[-1] == "runs fill<3,2,1 x 256,1,1>"
    held[0][...] = 64  # no device memory
    assert launch() == driver.CUresult.CUDA_ERROR_INVALID_VALUE
    assert stub.faults == ["FAULT fill is given 40, which is not device memory"]


@on_stub()
def test_what_a_driver_does_not_forgive(stub: Stub) -> None:
    driver, device, stream = opened()
    buffer = device.allocate(64, stream=stream)
    address, host = int(buffer.handle), np.zeros(64, np.uint8)
    event = device.create_event()
    driver.cuMemcpyHtoDAsync(address + 1, host.ctypes.data, 64, stream.handle)
    handle = int(stream.handle)
    driver.cuCtxSetCurrent(driver.CUcontext(0))
    assert driver.cuStreamSynchronize(handle)[0] == driver.CUresult.CUDA_ERROR_INVALID_CONTEXT
    device.set_current()
    driver.cuStreamBeginCapture(handle, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
    assert driver.cuMemHostAlloc(64, 0)[0] == driver.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
    stream.record(event)
    assert driver.cuStreamEndCapture(handle)[0] == driver.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    buffer.close(stream)
    driver.cuMemsetD8Async(address, 0, 64, handle)
    stream.close()
    driver.cuMemsetD8Async(address, 0, 64, handle)
    assert stub.faults == [
        "FAULT written outside of device memory",
        "FAULT cuStreamSynchronize has no current context",
        "FAULT cuMemHostAlloc in a capture",
        "FAULT an event is recorded in a capture",
        "FAULT written outside of device memory",
        "FAULT a destroyed stream is used",
    ]


@on_stub()
def test_copies_that_run_late_read_what_is_there_then(stub: Stub) -> None:
    driver, device, stream = opened()
    buffer, source = device.allocate(64, stream=stream), np.full(4, 1, np.uint8)
    address = int(buffer.handle)
    stub.late()
    driver.cuMemcpyHtoDAsync(address, source.ctypes.data, 4, stream.handle)
    source[:] = 2
    out = np.zeros(4, np.uint8)
    driver.cuMemcpyDtoHAsync(out.ctypes.data, address, 4, stream.handle)
    assert out.tolist() == [0] * 4
    stream.sync()
    assert out.tolist() == [2] * 4


@on_stub()
def test_calls_fail_where_a_test_asks_for_it(stub: Stub) -> None:
    driver, _, stream = opened()
    stub.fail("cuMemsetD8Async", code=1, nth=2, times=1)
    codes = [int(driver.cuDeviceGetCount()[0])]
    address = int(driver.cuMemAlloc(64)[1])
    codes += [int(driver.cuMemsetD8Async(address, 0, 64, stream.handle)[0]) for _ in range(3)]
    assert codes == [0, 0, 1, 0]
    assert stub.count("cuMemsetD8Async") == 3
    driver.cuMemFree(address)
