"""The device loop as a whole on a GPU: values, waiting, and the host's time a step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.kernel.speed import STEPS, on_device
from benchmarks.sections import Report
from edgediff.device.array import DeviceArray
from edgediff.device.cuda import CudaDevice
from edgediff.device.loop import DeviceLoop
from edgediff.device.model import Capture
from edgediff.sampling import loop as host
from edgediff.sampling.planning import plan
from edgediff.sampling.rng import TorchCpuGenerator, TorchCudaGenerator
from edgediff.sampling.schedule import Schedule
from tests.support.device_checks import EXACT
from tests.support.replay import Float32, Shape, largest_error


class _Memory:
    """Device memory as torch takes it."""

    def __init__(self, array: DeviceArray) -> None:
        kind = {"float32": "<f4", "float16": "<f2"}[array.dtype]
        facts = {"shape": array.shape, "typestr": kind, "data": (array.address, False), "version": 3, "strides": None}
        self.__cuda_array_interface__ = facts


class Small:
    """A stand-in U-Net of a few torch ops that allocate nothing, so that it may be captured. ``spin``: clock ticks."""

    capture: Capture = "always"
    warm_runs = 1
    key = "small"

    def __init__(self, torch: Any, device: CudaDevice, shape: Shape, spin: int = 0) -> None:
        self.torch, self.spin, self.stream = torch, spin, torch.cuda.ExternalStream(device.stream)
        most = 2 * shape[0]
        self.condition = torch.linspace(-1, 1, most, device="cuda").half().view(most, 1, 1, 1)
        self.work = torch.zeros((most, *shape[1:]), dtype=torch.float16, device="cuda")
        self.time = torch.zeros((most, 1, 1, 1), dtype=torch.float16, device="cuda")
        self.wrapped: dict[DeviceArray, Any] = {}
        torch.cuda.synchronize()

    def enqueue(self, sample: DeviceArray, timestep: DeviceArray, output: DeviceArray, stream: int) -> None:
        arrays = []
        for array in (sample, timestep, output):
            if array not in self.wrapped:  # at the first call, outside of a capture
                self.wrapped[array] = self.torch.as_tensor(_Memory(array), device="cuda")
            arrays.append(self.wrapped[array])
        with self.torch.cuda.stream(self.stream):
            self.forward(*arrays)

    def forward(self, x: Any, t: Any, y: Any) -> None:
        torch, count = self.torch, x.shape[0]
        work, when = self.work[:count], self.time[:count]
        when.copy_(t.view(count, 1, 1, 1))
        when.mul_(1e-3)
        torch.add(x, self.condition[-count:], out=work)  # the conditional half is the last
        work.tanh_()
        torch.add(work, when, out=y)
        if self.spin:
            torch.cuda._sleep(self.spin)

    def denoise(self, x: Float32, t: float, guided: bool) -> tuple[Float32 | None, Float32]:
        """Do the same on NumPy arrays, for the host loop."""
        torch, copies = self.torch, 2 if guided else 1
        sample = torch.from_numpy(np.concatenate([x.astype(np.float16)] * copies)).cuda()
        y = torch.empty_like(sample)
        self.forward(sample, torch.full((len(sample),), t, dtype=torch.float32, device="cuda"), y)
        halves = y.float().cpu().numpy()
        return (halves[: len(x)], halves[len(x) :]) if guided else (None, halves)


def whole_loop(report: Report, device: CudaDevice) -> None:
    """Time the loop with a captured U-Net, whose values must be the host loop's and for which nothing may wait."""
    import torch

    shape: Shape = (1, 4, 64, 64)
    table = plan(Schedule(), "dpmpp_2m", STEPS, 7.5)
    settings = {"rows": STEPS, "depth": table.depth, "sample_type": "float16", "output_type": "float16"}
    model = Small(torch, device, shape)
    loop = DeviceLoop(device, model, shape, **settings)
    expected = None
    streams = [TorchCpuGenerator(3)]
    for step in host.run(table, model.denoise, table.start * streams[0].randn(shape), lambda: streams[0].randn(shape)):
        expected = step.after
    assert expected is not None
    for turn in ("eager, then captured", "replayed"):
        error = largest_error(_last(loop, table, [TorchCpuGenerator(3)]).after, expected)
        report.check(f"the loop's values, {turn}", error <= EXACT, f"error {error:.2g}")

    waits = {"download": 0, "wait": 0}
    for name in waits:
        _count(device, name, waits)
    whole, later = [], []
    for seed in range(50):
        streams = [TorchCudaGenerator(seed, device.multiprocessors, device.threads_per_multiprocessor)]
        torch.cuda.synchronize()
        start = time.perf_counter()
        steps = loop.run(table, streams)
        next(steps)
        first = time.perf_counter()
        for step in steps:
            pass
        end = time.perf_counter()
        whole.append(1e6 * (end - start) / STEPS)
        later.append(1e6 * (end - first) / (STEPS - 1))
    report.check("no waiting before the end", waits == {"download": 0, "wait": 0}, f"50 runs: {waits}")
    torch.cuda.synchronize()
    replay = on_device(torch, model.stream, lambda: _last(loop, table, streams) and None, STEPS)
    report.figures |= {
        "host_us_a_step_of_the_whole_run": round(statistics.median(whole), 2),
        "host_us_a_later_step": round(statistics.median(later), 2),
        "device_us_a_step": round(replay, 2),
    }
    report.goal("host us a step, of the whole run with its preparation", statistics.median(whole), "<= 5")
    report.goal("host us a step after the first", statistics.median(later), "<= 5")

    slow = DeviceLoop(device, Small(torch, device, shape, spin=4_000_000), shape, **settings)
    _last(slow, table, streams)
    torch.cuda.synchronize()
    start = time.perf_counter()
    last = _last(slow, table, streams)
    mark = device.mark()
    enqueued, ahead = time.perf_counter() - start, not mark.is_done
    begun = time.perf_counter()
    again = slow.run(table, streams)
    next(again)  # a second run's rows and seeds are copied while the first is still running
    waited = time.perf_counter() - begun
    again.close()
    torch.cuda.synchronize()
    finished = time.perf_counter() - start
    detail = f"enqueued in {1e3 * enqueued:.2f} ms; the device took {1e3 * finished:.1f} ms"
    report.check("the host is ahead of the device", ahead and enqueued < finished / 2, detail)
    report.figures["next_run_begins_in_ms"] = round(1e3 * waited, 2)
    before = dict(waits)
    last = _last(slow, table, streams, ahead=1)
    report.check("ahead=1 waits a step", waits["wait"] - before["wait"] == STEPS - 1, f"{waits['wait']} waits")
    same = np.array_equal(last.after, _last(loop, table, streams).after)
    report.check("the same bits with and without waiting", same)


def _last(loop: DeviceLoop, table: Any, streams: Sequence[Any], ahead: int | None = None) -> Any:
    step = None
    for step in loop.run(table, streams, ahead=ahead):
        pass
    return step


def _count(device: Any, name: str, counts: dict[str, int]) -> None:
    method = getattr(device, name)

    def counted(*args: Any) -> Any:
        counts[name] += 1
        return method(*args)

    setattr(device, name, counted)
