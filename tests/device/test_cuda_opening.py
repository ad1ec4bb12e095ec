"""A CUDA device that cannot be opened says why, before anything is asked of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

from edgediff.device.cuda import CudaDevice
from edgediff.device.cuda.opening import open_driver
from edgediff.device.driver import LIBRARIES
from edgediff.errors import ArgumentError, EdgediffError, EngineError

from .stub.library import Stub
from .stub.on_stub import on_stub


def test_no_driver() -> None:
    code = (
        "import edgediff.device.driver as d; d.LIBRARIES = ('libcuda-that-is-not-here.so.1',)\n"
        "from edgediff.device.cuda import CudaDevice\nCudaDevice()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stderr.splitlines()[-1].startswith("edgediff.errors.EngineError: no NVIDIA driver (libcuda-that-is-not")
    assert LIBRARIES  # of this system


@on_stub(alone=True, devices=0)
def test_no_gpu(stub: Stub) -> None:
    with pytest.raises(EngineError, match=r"the NVIDIA driver's cuInit gave error 100"):
        CudaDevice()


@on_stub(devices=2)
def test_a_number_out_of_range(stub: Stub) -> None:
    for ordinal in (2, -1, True, 1.5, "0", None, 10**30):
        with pytest.raises(ArgumentError, match=r"device is .*; this machine has 0 \.\. 1"):
            CudaDevice(ordinal)  # type: ignore[arg-type]
    CudaDevice(np.int64(1)).close()  # type: ignore[arg-type]
    assert not stub.faults


@on_stub(alone=True, driver=12060)
def test_a_driver_that_is_too_old(stub: Stub) -> None:
    bindings = pytest.importorskip("cuda.bindings")
    if bindings.__version__.startswith("12."):
        CudaDevice().close()
        return
    with pytest.raises(EngineError, match=r"runs CUDA up to 12\.6, which is too old for cuda-bindings 1.*bindings<13'"):
        CudaDevice()


@on_stub(alone=True, driver=12080)
def test_bindings_12_on_a_driver_of_12(stub: Stub) -> None:
    bindings = pytest.importorskip("cuda.bindings")
    if not bindings.__version__.startswith("12."):
        pytest.skip(f"cuda-bindings is {bindings.__version__}")
    device = CudaDevice()
    device.launch(device.capture(lambda: None))
    device.close()
    assert not stub.faults


@on_stub(alone=True)
def test_what_cuda_core_says_of_a_failing_import_is_told(stub: Stub) -> None:
    patch = pytest.MonkeyPatch()
    patch.setitem(sys.modules, "cuda.core", None)
    with pytest.raises(EngineError, match=r"cuda-core cannot be imported \(.*cuda\.core.*\); run: pip install 'cuda-c"):
        open_driver(0)
    patch.undo()


@on_stub()
def test_a_device_without_events_leaves_no_pinned_memory(stub: Stub) -> None:
    before = stub.allocated(pinned=True)
    for nth in range(1, 6):
        stub.clear()
        stub.fail("cuEventCreate", nth=nth)
        with pytest.raises(EngineError, match="opening CUDA device 0: "):
            CudaDevice(0)
        assert stub.allocated(pinned=True) == before


@on_stub()
def test_a_device_that_fails_to_open(stub: Stub) -> None:
    CudaDevice().close()
    for name in ("cuCtxSetCurrent", "cuStreamCreateWithPriority", "cuEventCreate", "cuMemHostAlloc"):
        stub.fail(name, code=2)
        with pytest.raises(EngineError, match="CUDA device 0: "):
            CudaDevice()
        stub.clear()
    CudaDevice().close()
    assert not stub.faults


@on_stub(alone=True)
def test_a_forked_process_is_refused(stub: Stub) -> None:
    """In the child the driver is of no use, and a lock that another thread held has nobody who gives it back."""
    device = CudaDevice()
    mark, held, done = device.mark(), threading.Event(), threading.Event()

    def hold() -> None:
        with device.lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    calls: list[Any] = [CudaDevice, device.mark, lambda: device.wait(mark), device.use, lambda: device.allocate(16)]
    child = os.fork()
    if not child:
        signal.alarm(20)  # for a lock that is never given back
        refused = 0
        for call in calls:
            try:
                call()
            except EdgediffError as error:
                refused += "this process was forked from one that uses CUDA" in str(error)
        device.close()
        os._exit(0 if refused == len(calls) and device.stream == 0 else 1)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0
    device.wait(mark)
    device.close()
    assert not stub.faults
