"""Step graphs by the real cuda-core, on the stub driver: captures that fail there, and what is left of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .stub.library import environment

PROGRAM = """
import warnings
from types import SimpleNamespace

import numpy as np

from edgediff.device.array import DeviceArray
from edgediff.device.cuda import CudaDevice
from edgediff.device.graphs import StepGraphs
from tests.device.stub.library import Stub

stub = Stub()
device = CudaDevice(0)
driver = device.driver

class Net:
    capture, warm_runs, key = "always", 1, 0
    value, host = 0, False

    def enqueue(self, sample, timestep, output, stream):
        # a value of the host's: a graph keeps the first
        device.call(driver.cuMemsetD8Async, output.address, 0x40 + self.value, output.nbytes, stream)
        if self.host:
            device.call(driver.cuLaunchHostFunc, stream, 0, 0)

def run(steps=8, fail=(), **facts):
    stub.clear()
    for nth in fail:
        stub.fail("cuStreamEndCapture", 901, nth, times=1)
    net, rows = Net(), []
    vars(net).update(facts)
    arrays = [DeviceArray(device.allocate(4096), (1, 4, 16, 16), "float32") for _ in range(3)]
    update = SimpleNamespace(step=lambda: device.call(driver.cuMemsetD8Async, arrays[0].address, 1, 64, device.stream))
    graphs = StepGraphs(device, net, {True: tuple(arrays)}, update)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for net.value in range(steps):
            with device.lock:
                graphs.step(True)
    print(*graphs.states.values(), stub.count("cuStreamBeginCapture"), stub.count("cuGraphLaunch"), stub.faults)
    for one in said:
        print(one.category.__name__, one.message)

run()
run(fail=[1])
run(fail=[1, 2])
run(capture="proven", warm_runs=3)
run(capture="proven", warm_runs=3, host=True)
device.close()
"""


def test_captures_on_the_stub_driver(stub_library: Path) -> None:
    env = environment(stub_library)
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = "EngineWarning unet runs without CUDA graphs: "
    told = done.stdout.splitlines()
    assert told[:3] == ["captured 1 7 []", "captured 2 6 []", "eager 2 0 []"]
    assert told[3].startswith(f"{said}capturing a CUDA graph: ")
    assert "capture sequence on the stream has been invalidated" in told[3]
    assert told[4] == "eager 1 2 []"  # the graph gives the first value again
    assert told[5].startswith(f"{said}its graph gave other values than the call itself")
    assert told[6:] == ["eager 1 0 []"]  # the engine is made so: no second try, and no warning
