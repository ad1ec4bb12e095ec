"""The host twin of the update beside NumPy: equal bits, and the time of each."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.sections import Report
from edgediff.device.array import Block
from edgediff.device.geometry import Geometry
from edgediff.device.host_kernels import HostKernels
from edgediff.sampling.kernel_layout import HEADER, header_of, packed
from edgediff.sampling.kernels import advance
from edgediff.sampling.planning import Plan, plan
from edgediff.sampling.schedule import Schedule
from edgediff.sampling.update import remember, update

SHAPES = ((1, 4, 64, 64), (1, 4, 128, 128), (8, 4, 128, 128))


def twin(report: Report) -> None:
    """Time one update by the host twin and by NumPy, whose bits must be equal, and a prepared call."""
    rng = np.random.default_rng(0)
    plans = {name: plan(Schedule(), name, 20, 7.5) for name in ("euler", "dpmpp_2m")}
    for shape in SHAPES:
        turns = max(200, 20_000_000 // int(np.prod(shape)))
        x, u, c, h = (rng.standard_normal(shape).astype(np.float32) for _ in range(4))
        for name, rows in plans.items():
            row, history, keep = rows.rows[10], [h] * rows.depth, rows.depth > 0

            def plain() -> Any:
                return update(row, x, u, c, history), remember(row, x, u, c) if keep else None  # noqa: B023

            def fused() -> Any:
                return advance(row, x, u, c, history, None, keep)  # noqa: B023

            taken: dict[Callable[[], Any], list[float]] = {plain: [], fused: []}
            for turn in range(turns):
                for work in (plain, fused) if turn % 2 else (fused, plain):  # neither has always the warmer cache
                    start = time.perf_counter()
                    work()
                    taken[work].append(time.perf_counter() - start)
            pairs = zip(fused(), plain(), strict=True)
            equal = all((a is None and b is None) or a.tobytes() == b.tobytes() for a, b in pairs)
            report.check(f"host twin equals NumPy, {name} {shape}", equal, f"{turns} updates")
            numpy_us, twin_us = (1e6 * statistics.median(taken[v]) for v in (plain, fused))
            report.figures[f"{name} {' x '.join(map(str, shape))}"] = {
                "numpy_us": round(numpy_us, 1),
                "twin_us": round(twin_us, 1),
                "ratio": round(numpy_us / twin_us, 2),
            }
    for shape in ((1, 1, 1, 1), *SHAPES):
        taken = _prepared_call(plans["dpmpp_2m"], shape)
        report.figures[f"prepared call, dpmpp_2m {' x '.join(map(str, shape))}"] = {"us": round(taken, 2)}


def _prepared_call(rows: Plan, shape: Sequence[int]) -> float:
    """Give the microseconds of ``Update.step`` on the host: x0 kept, float32 in and out of the model."""
    batch, size = shape[0], int(np.prod(shape[1:]))
    header = np.zeros(1, HEADER)
    header[0] = header_of(steps=len(rows.rows), depth=rows.depth, copies=2)
    memory = {name: np.zeros(2 * batch * size, np.float32) for name in ("x", "history", "x0", "output", "input")}
    memory |= {"header": header, "rows": packed(rows), "seeds": np.zeros(batch, np.uint64)}
    memory["timestep"] = np.zeros(2 * batch, np.float32)
    buffers = {name: Block(v.ctypes.data, v.nbytes) for name, v in memory.items()}
    prepared = HostKernels().update(Geometry(batch, size, size, rows.depth, len(rows.rows), 2), buffers)
    taken = []
    for _ in range(max(200, min(2000, 20_000_000 // (batch * size)))):
        header["step"] = 10
        start = time.perf_counter()
        prepared.step()
        taken.append(time.perf_counter() - start)
    return 1e6 * statistics.median(taken)
