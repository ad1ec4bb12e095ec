"""What an engine's graph may not hold is found by the real cuda-bindings, on the stub driver."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .stub.library import environment

PROGRAM = """
from types import SimpleNamespace

import numpy as np
from cuda.bindings import driver

from edgediff.device.graph_nodes import refuse_host_work
from edgediff.errors import EngineError

def call(function, *arguments):
    error, *results = function(*arguments)
    assert error == driver.CUresult.CUDA_SUCCESS, (function.__name__, error)
    return results[0] if results else None

call(driver.cuInit, 0)
call(driver.cuCtxSetCurrent, call(driver.cuDevicePrimaryCtxRetain, 0))
stream = call(driver.cuStreamCreate, 1)
block, values = call(driver.cuMemAlloc, 4096), np.zeros(64, np.uint8)

def fill(): call(driver.cuMemsetD8Async, block, 0, 64, stream)
def send(): call(driver.cuMemcpyHtoDAsync, block, values.ctypes.data, 64, stream)
def fetch(): call(driver.cuMemcpyDtoHAsync, values.ctypes.data, block, 64, stream)
def host(): call(driver.cuLaunchHostFunc, stream, 0, 0)

for work in ((), (fill, fill), (fill, send, send), (fetch,), (host, fill, send)):
    call(driver.cuStreamBeginCapture, stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
    for one in work:
        one()
    try:
        refuse_host_work(SimpleNamespace(ordinal=0, stream=int(stream)))
        print("taken")
    except EngineError as error:
        print(error)
    call(driver.cuStreamEndCapture, stream)
send()
refuse_host_work(SimpleNamespace(ordinal=0, stream=int(stream)))  # nothing is captured
refuse_host_work(SimpleNamespace(ordinal=-1, stream=0))
"""
REFUSED = "its graph would hold work that cannot be done again: "


def test_work_of_the_host_is_refused(stub_library: Path) -> None:
    env = environment(stub_library)
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    copies = "MEMCPY with host memory"
    assert done.stdout.splitlines() == [
        *("taken", "taken", f"{REFUSED}2 {copies}", f"{REFUSED}1 {copies}"),
        f"{REFUSED}1 HOST, 1 {copies}",
    ]
