"""The built-in U-Net by ONNX Runtime in three ways: call by call, by its own CUDA graph, captured from outside.

    python -m benchmarks.gpu.capture            # where there is a GPU; a minute
    python -m benchmarks.gpu.capture --dry-run  # on a device in host memory, where a graph is the calls themselves

calls      every step is a call of the session and a launch of the update
own graph  the same with the provider's option enable_cuda_graph: ONNX Runtime captures itself, the update is launched
outside    one graph of {U-Net, update}, captured after three calls, with ONNX Runtime's own graphs off

Each way makes whole runs from two first states with two texts; the last states must be those of the calls. Times are
of a step: until the host has enqueued it, and with the device's part. Writes ``results/capture-GPU.json``. Exit code
0, or 2 where there is no GPU, or 1 where a way fails or gives other values.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, table, write
from benchmarks.sections import Report, all_hold, checks_and_goals, run_here, slug
from edgediff.arrays import Float32
from edgediff.bundle.graph_files import graph_path
from edgediff.bundle.reading import read_bundle
from edgediff.compare import relative
from edgediff.device.array import DeviceArray
from edgediff.device.base import Device
from edgediff.device.driver import probe
from edgediff.device.loop import DeviceLoop
from edgediff.device.model import Capture
from edgediff.device.noise import draw_noise
from edgediff.engines.onnxruntime_stream import OnnxRuntimeStreamEngine
from edgediff.engines.providers import CUDA
from edgediff.errors import EngineError
from edgediff.sampling.kernel_layout import packed
from edgediff.sampling.planning import plan
from edgediff.sampling.rng import TorchCpuGenerator

PACKAGES = ("edgediff", "edgediff-kernels", "numpy", "onnxruntime", "onnxruntime-gpu", "cuda-core", "cuda-bindings")
STEPS, TURNS, GUIDANCE, TOKENS = 20, 20, 2.0, 77
WARM = 3  # calls before a capture: ONNX Runtime lays out memory in the second, too
CEILING = 1e-3  # relative; equal bits are noted besides
WAYS = ("calls", "own graph", "outside")


class Idle:
    """The loop is here for its memory and its update alone; the steps are enqueued below."""

    capture: Capture = "never"
    warm_runs = 0
    key = None

    def enqueue(self, *arrays: Any) -> None:
        raise AssertionError("the loop runs nothing here")


class Bench:
    """The U-Net, the update and their memory on a device; two inputs.

    Args:
        device: where.
        options: of the CUDA provider; None on a device in host memory.
    """

    def __init__(self, device: Device, options: dict[str, str] | None) -> None:
        bundle = read_bundle(None)
        part, latent = bundle.parts["unet"], bundle.latent
        self.device = device
        size = (bundle.defaults.height // latent.factor, bundle.defaults.width // latent.factor)
        self.shape = (1, latent.channels, *size)
        types = {t.name: t.dtype for t in (*part.inputs, *part.outputs)}
        self.loop = DeviceLoop(
            device,
            Idle(),
            self.shape,
            sample_type=types["sample"],
            output_type=types["out_sample"],
            timestep_type=types["timestep"],
        )
        width = next(t.shape[-1] for t in part.inputs if t.name == "encoder_hidden_states")
        kind = types["encoder_hidden_states"]
        rng = np.random.default_rng(0)
        self.texts = [rng.standard_normal((2, TOKENS, int(width))).astype(kind) for _ in range(2)]
        self.firsts: list[Float32] = [rng.standard_normal(self.shape, np.float32) for _ in range(2)]
        self.text = DeviceArray(device.allocate(self.texts[0].nbytes), self.texts[0].shape, kind)
        self.table = plan(bundle.schedule, bundle.defaults.sampler, STEPS, GUIDANCE)
        providers = None if options is None else [(CUDA, options)]
        path = graph_path(bundle, "unet", part.files[0])
        self.engine = OnnxRuntimeStreamEngine("unet", path, part, None, device, providers)

    def load(self, which: int) -> None:
        """Copy an input to the device, and make the model's first sample."""
        self.device.upload(self.text.address, self.texts[which])
        noise = draw_noise(self.table, packed(self.table), [TorchCpuGenerator(0)], self.shape, self.firsts[which])
        self.loop.update.renew()
        self.loop.update.load(self.table, packed(self.table), noise)

    def step(self) -> None:
        """Enqueue a call of the U-Net and the update."""
        loop = self.loop
        inputs = {"sample": loop.sample, "timestep": loop.timestep, "encoder_hidden_states": self.text}
        self.engine.enqueue(inputs, {"out_sample": loop.output}, self.device.stream)
        loop.update.step()

    def wait(self) -> None:
        self.device.wait(self.device.mark())


def way(report: Report, device: Device, name: str, wanted: list[Float32]) -> None:
    """Run one way; the first one's last states go to ``wanted``, and the others are held against them."""
    options = {"enable_cuda_graph": "1" if name == "own graph" else "0"} if device.ordinal >= 0 else None
    bench = Bench(device, options)
    bench.load(0)
    for _ in range(WARM):
        bench.step()
    bench.wait()
    enqueue: Callable[[], None] = bench.step
    if name == "outside":
        graph = device.capture(bench.step)

        def enqueue() -> None:
            device.launch(graph)

    states = []
    for which in (0, 1):
        bench.load(which)
        for _ in range(STEPS):
            enqueue()
        states.append(bench.loop.update.fetch("x", bench.loop.update.version))
    report.check("finite", all(np.isfinite(state).all() for state in states))
    report.check("other inputs give other states", relative(states[1], states[0]) > 0.01)
    if not wanted:
        wanted += states
    errors = [relative(state, held) for state, held in zip(states, wanted, strict=True)]
    report.check("the states of the calls, of two inputs", max(errors) <= CEILING, f"{max(errors):.1e} (relative)")
    host, whole = [], []
    turns = TURNS if device.ordinal >= 0 else 2
    for _ in range(turns):
        bench.load(0)
        bench.wait()
        start = time.perf_counter()
        for _ in range(STEPS):
            enqueue()
        host.append((time.perf_counter() - start) / STEPS)
        bench.wait()
        whole.append((time.perf_counter() - start) / STEPS)
    report.figures |= {
        "host_us_a_step": round(1e6 * statistics.median(host), 2),
        "whole_us_a_step": round(1e6 * statistics.median(whole), 2),
        "equal_bits": all(np.array_equal(state, held) for state, held in zip(states, wanted, strict=True)),
        "relative_error": float(f"{max(errors):.2e}"),
        "runs": turns,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="in host memory; its times mean nothing")
    parser.add_argument("--out", type=Path, help="a folder for the JSON, in place of benchmarks/results")
    args = parser.parse_args()
    try:
        device, name = opened(args.dry_run)
    except EngineError as error:
        print(f"no GPU to run on: {error}")
        return 2
    wanted: list[Float32] = []
    ways = [one for one in WAYS if device.ordinal >= 0 or one != "own graph"]
    found = {one: run_here(lambda report: way(report, device, one, wanted)) for one in ways}  # noqa: B023
    print(*checks_and_goals(found), sep="\n\n")
    head = ("host_us_a_step", "whole_us_a_step", "equal_bits", "relative_error")
    print("\n" + table(["way", *head], [[o, *(f["figures"].get(key, "") for key in head)] for o, f in found.items()]))
    if args.dry_run and args.out is None:
        print("\nA dry run: its times mean nothing, and none was written.")
    else:
        print(f"\n{write(f'capture-{name}', {'gpu': name} | found, PACKAGES, args.out or RESULTS)}")
    return 0 if all_hold(found) else 1


def opened(dry: bool) -> tuple[Device, str]:
    """Open the device; give it with its name for files. Raises ``EngineError``: there is no GPU."""
    if dry:
        from edgediff.device.host import HostDevice

        return HostDevice(), "host"
    from edgediff.device.cuda import CudaDevice

    name = slug(probe().name)
    return CudaDevice(), name


if __name__ == "__main__":
    sys.exit(main())
