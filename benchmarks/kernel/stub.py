"""What the device loop costs the host, in microseconds a step, where the driver costs nothing.

    python -m benchmarks.kernel.stub

A stub of NVIDIA's driver (tests/device/stub, compiled by cc) takes the real driver's place under the real cuda-core.
Nothing is computed, so what is left is edgediff's, cuda-core's and Python's own. Writes ``results/stub.json``.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import table, write
from tests.device.stub.library import Stub, compile_stub, environment, why_not

STEPS, TURNS = 20, 300
SHAPE = (1, 4, 64, 64)
CONDITIONS = {
    "empty": {},
    "1 condition": {"encoder_hidden_states": (2, 77, 768)},
    "3 conditions": {"encoder_hidden_states": (2, 77, 2048), "text_embeds": (2, 1280), "time_ids": (2, 6)},
}
PACKAGES = ("edgediff", "cuda-core", "cuda-bindings", "numpy")


class Empty:
    """An empty model enqueues nothing."""

    capture = "always"
    warm_runs = 1
    address = 0  # of scratch memory, as TensorRT's key has it

    @property
    def key(self) -> Any:
        return self.address, 0

    def enqueue(self, *arguments: Any) -> None:
        pass


def loops(device: Any) -> Iterator[tuple[str, Any]]:
    """A device loop for each number of conditions."""
    from edgediff.bundle.manifest import Tensor
    from edgediff.device.loop import DeviceLoop
    from edgediff.generation.conditioned_unet import ConditionedUnet

    for name, shapes in CONDITIONS.items():
        model: Any = Empty()
        if shapes:
            inputs = [Tensor(key, "float16", shape) for key, shape in shapes.items()]
            model = ConditionedUnet(device, model, inputs, 1)
            model.set({key: np.zeros(shape, np.float32) for key, shape in shapes.items()})
        yield name, DeviceLoop(device, model, SHAPE, rows=STEPS, sample_type="float16", output_type="float16")


def run_times(loop: Any, plan: Any, ahead: int | None) -> dict[str, float]:
    """The median microseconds a step: of a whole run, and of the steps after the first."""
    from edgediff.sampling.rng import TorchCudaGenerator

    whole, later = [], []
    for seed in range(TURNS):
        streams = [TorchCudaGenerator(seed)]
        start = time.perf_counter()
        steps = loop.run(plan, streams, ahead=ahead)
        next(steps)
        first = time.perf_counter()
        for _ in steps:
            pass
        end = time.perf_counter()
        whole.append((end - start) / STEPS)
        later.append((end - first) / (STEPS - 1))
    return {"whole": us(statistics.median(whole)), "later": us(statistics.median(later)), "best_later": us(min(later))}


def us(seconds: float) -> float:
    return round(1e6 * seconds, 2)


def call_time(call: Callable[[], Any], turns: int = 5000) -> float:
    """The microseconds of one call, the best of five rounds."""
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(turns):
            call()
        rounds.append((time.perf_counter() - start) / turns)
    return us(min(rounds))


def measure() -> dict[str, Any]:
    """Everything, in a process whose driver is the stub."""
    Stub()
    from edgediff.device.cuda import CudaDevice
    from edgediff.sampling.planning import plan
    from edgediff.sampling.schedule import Schedule

    device, rows = CudaDevice(), plan(Schedule(), "dpmpp_2m", STEPS, 7.5)
    found: dict[str, Any] = {"us_a_step": {}, "us_a_call": {}}
    for name, loop in loops(device):
        for ahead in (None, 2):
            found["us_a_step"][f"{name}, ahead={ahead}"] = run_times(loop, rows, ahead)
    graph = device.capture(lambda: None)
    address = device.allocate(1 << 20)
    small, rows_bytes, large = (np.zeros(size, np.uint8) for size in (100, 5000, 1 << 19))
    out = np.zeros(100, np.uint8)
    for name, call in {
        "launch": lambda: device.launch(graph),
        "mark and wait": lambda: device.wait(device.mark()),
        "upload of 100 bytes": lambda: device.upload(address, small),
        "upload of 5,000 bytes": lambda: device.upload(address, rows_bytes),
        "upload of 0.5 MB": lambda: device.upload(address, large),
        "download of 100 bytes": lambda: device.download(address, out),
        "use": device.use,
    }.items():
        found["us_a_call"][name] = call_time(call, 200 if "MB" in name else 5000)
    device.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write stub.json into this folder")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # the child's
    args = parser.parse_args()
    if not args.here:
        if why := why_not():
            print(why)
            return 1
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "benchmarks.kernel.stub", "--here", *sys.argv[1:]]
            return subprocess.run(command, env=environment(compile_stub(Path(folder)))).returncode
    sys.argv.remove("--here")
    found = measure()
    steps = [[name, f["whole"], f["later"], f["best_later"]] for name, f in found["us_a_step"].items()]
    print(table([f"us a step of {STEPS}", "whole run", "a later step", "at best"], steps), "\n")
    print(table(["us a call", ""], [[name, f] for name, f in found["us_a_call"].items()]), "\n")
    print(write("stub", found, PACKAGES, *([args.out] if args.out else [])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
