"""Speed of the update on a GPU, beside torch and CuPy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.sections import Report
from edgediff.device.array import Block
from edgediff.device.cuda import CudaDevice
from edgediff.device.geometry import Geometry
from edgediff.sampling.kernel_layout import HEADER, ROW, header_of, record
from edgediff.sampling.planning import plan
from edgediff.sampling.rng import TorchCudaGenerator, draw_rounds
from edgediff.sampling.schedule import Schedule
from edgediff.sampling.update import Row
from tests.support.replay import Shape, largest_error

ROOM = 4096  # rows: how often an update may run before its header is set back
CHAIN = 100  # updates in a captured graph
REPEATS = 20
STEPS = 20


def typical(sampler: str, prediction: str = "epsilon") -> Row:
    """Give a guided row from the middle of a run; contracting, so that thousands of steps stay finite."""
    table = plan(Schedule(prediction_type=prediction), sampler, STEPS, 7.5)
    return replace(table.rows[STEPS // 2], a=0.5, p=0.5)


class Prepared:
    """The update of one row, over and over, on torch's memory: float16 in and out of the model."""

    def __init__(self, torch: Any, device: CudaDevice, shape: Shape, row: Row, previews: bool = False) -> None:
        self.device, self.row, self.shape, self.depth = device, row, shape, len(row.w)
        batch, size = shape[0], int(np.prod(shape[1:]))
        new = {"device": "cuda", "dtype": torch.float32}
        self.x = torch.randn(shape, **new)
        self.history = torch.randn((max(self.depth, 1), *shape), **new)
        self.output = torch.randn((2 * batch, *shape[1:]), **new).half()
        self.input = torch.zeros_like(self.output)
        rows = np.array([record(row, draw) for draw in range(ROOM)], ROW)
        self._torch, header = torch, np.zeros(1, HEADER)
        maker = TorchCudaGenerator(0, device.multiprocessors, device.threads_per_multiprocessor)
        threads = maker.place(size)[0]
        rounds = draw_rounds(size, threads)
        header[0] = header_of(steps=ROOM, depth=self.depth, copies=2, threads=threads, rounds=rounds)
        self._fresh = torch.from_numpy(header.view(np.uint8)).cuda()
        self._header = self._fresh.clone()
        kept = {
            "header": self._header,
            "rows": torch.from_numpy(rows.view(np.uint8)).cuda(),
            "seeds": torch.arange(batch, dtype=torch.int64, device="cuda"),
            "x": self.x,
            "output": self.output,
            "input": self.input,
            "timestep": torch.zeros(2 * batch, **new),
        }
        if self.depth:
            kept["history"] = self.history
        if previews:
            kept["x0"] = torch.zeros_like(self.x)
        self._kept = kept
        geometry = Geometry(batch, size, size, self.depth, ROOM, 2, "float16", "float16")
        buffers = {name: Block(v.data_ptr(), v.numel() * v.element_size()) for name, v in kept.items()}
        self._update = device.kernels.update(geometry, buffers)
        # What the update must at least move: every input read once, every output written once.
        self.values = batch * size
        self.bytes = self.values * (4 + 4 + 2 * 2 + 2 * 2 + 8 * self.depth + 4 * previews)
        self.reset()

    def reset(self) -> None:
        """Go back to the first row; this waits for the device."""
        self._torch.cuda.synchronize()
        self._header.copy_(self._fresh)
        self._torch.cuda.synchronize()

    def enqueue(self) -> None:
        self._update.step()

    def ran(self) -> tuple[int, int]:
        """Give the steps since the last reset, and what was bad in them (0: nothing)."""
        self._torch.cuda.synchronize()
        header = self._header.cpu().numpy().view(HEADER)[0]
        return int(header["step"]), int(header["bad_what"])


def on_device(torch: Any, stream: Any, work: Callable[[], Any], inner: int = 1) -> float:
    """Give the microseconds of ``work`` on the device, by events: the median, divided by ``inner``."""
    taken = []
    for turn in range(3 + REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(stream):
            torch.cuda._sleep(1_000_000)  # some 0.5 ms, in which the host enqueues the rest
            start.record()
            work()
            end.record()
        end.synchronize()
        if turn >= 3:
            taken.append(1000 * start.elapsed_time(end) / inner)
    return statistics.median(taken)


def by_call(torch: Any, work: Callable[[], Any], before: Callable[[], None] | None = None, calls: int = 200) -> float:
    """Give the microseconds of a call from the host, one after the other, with the wait for the last: the median."""
    taken = []
    for turn in range(3 + REPEATS):
        if before is not None:
            before()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            work()
        torch.cuda.synchronize()
        if turn >= 3:
            taken.append(1e6 * (time.perf_counter() - start) / calls)
    return statistics.median(taken)


def torch_update(row: Row) -> Callable[..., Any]:
    """Give the row as plain torch ops: guidance, update, history, and the model's next input."""
    g, (w,), bm, qm = row.scale, row.w, row.bu + row.bc, row.qu + row.qc

    def update(x: Any, output: Any, h: Any) -> tuple[Any, Any, Any]:
        u, c = output.float().chunk(2)
        m = u + g * (c - u)
        after = row.a * x + bm * m + w * h
        pushed = row.p * x + qm * m
        half = after.half()
        return after, pushed, half.repeat(2, 1, 1, 1)

    return update


def in_torch_graph(torch: Any, work: Callable[[], Any]) -> float:
    """Give the microseconds of ``work`` within a captured graph of many."""
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=side):
        for _ in range(CHAIN):
            work()
    return on_device(torch, side, graph.replay, CHAIN)


def in_cupy_graph(torch: Any, cupy: Any, work: Callable[[], Any]) -> float:
    """Do the same with CuPy's graph."""
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        for _ in range(3):  # its memory pool is filled before the capture, which cannot allocate
            work()
        stream.synchronize()
        stream.begin_capture()
        for _ in range(CHAIN):
            work()
        graph = stream.end_capture()
    return on_device(torch, torch.cuda.ExternalStream(stream.ptr), lambda: graph.launch(stream), CHAIN)


def cupy_updates(cupy: Any, p: Prepared) -> dict[str, Callable[[], Any]]:
    """Give the row as CuPy's plain operators, and as one ElementwiseKernel."""
    row, (w,) = p.row, p.row.w
    x, h, output, target = (cupy.asarray(v) for v in (p.x.clone(), p.history[0].clone(), p.output, p.input.clone()))
    u, c = cupy.split(output, 2)
    first, second = cupy.split(target, 2)
    after, pushed = cupy.empty_like(x), cupy.empty_like(x)
    f = cupy.float32
    fused = cupy.ElementwiseKernel(
        "float32 x, float16 u, float16 c, float32 h, float32 a, float32 bu, float32 bc, float32 w, float32 p, "
        "float32 qu, float32 qc",
        "float32 after, float32 pushed, float16 first, float16 second",
        "const float fu = u, fc = c; after = a * x + bc * fc + bu * fu + w * h; pushed = p * x + qc * fc + qu * fu; "
        "first = after; second = after;",
        "edgediff_rival",
    )
    numbers = [f(v) for v in (row.a, row.bu, row.bc, w, row.p, row.qu, row.qc)]

    def plain() -> Any:
        fu, fc = u.astype(f), c.astype(f)
        m = fu + f(row.scale) * (fc - fu)
        made = numbers[0] * x + f(row.bu + row.bc) * m + numbers[3] * h
        kept = numbers[4] * x + f(row.qu + row.qc) * m
        half = made.astype(cupy.float16)
        return made, kept, cupy.concatenate([half, half])

    def one() -> Any:
        fused(x, u, c, h, *numbers, after, pushed, first, second)
        return after, pushed, target

    return {"CuPy, operators": plain, "CuPy, ElementwiseKernel": one}


def rivals(report: Report, device: CudaDevice) -> None:
    """Time one update (guided dpmpp_2m, float16 model), called from the host and within a replayed graph.

    The rivals have the row's numbers as constants, which is kind to them: in a run they change every step.
    """
    import torch

    ours_stream = torch.cuda.ExternalStream(device.stream)
    for shape in ((1, 4, 64, 64), (1, 4, 128, 128)):
        p = Prepared(torch, device, shape, typical("dpmpp_2m"))
        before = p.x.clone(), p.output.clone(), p.history[0].clone()
        torch.cuda.synchronize()  # the update runs on a stream of its own
        p.enqueue()
        torch.cuda.synchronize()
        ours_now = p.x.clone(), p.history[0].clone(), p.input.clone()
        rows: dict[str, dict[str, Any]] = {"edgediff": {}}
        mine = rows["edgediff"]
        mine["call_us"] = by_call(torch, p.enqueue, p.reset)
        p.reset()
        graph = device.capture(lambda p=p: [p.enqueue() for _ in range(CHAIN)])
        mine["graph_us"] = on_device(torch, ours_stream, lambda g=graph: device.launch(g), CHAIN)
        ran, bad = p.ran()
        expected = (3 + REPEATS) * CHAIN
        report.check(f"every update ran, {shape}", (ran, bad) == (expected, 0), f"{ran} of {expected}, bad {bad}")

        args = tuple(v.clone() for v in before)
        update = torch_update(p.row)
        works: dict[str, Callable[[], Any]] = {"torch": lambda args=args, f=update: f(*args)}
        with _noted(rows, "torch.compile"):
            torch._dynamo.reset()
            plain = torch.compile(torch_update(p.row))
            works["torch.compile"] = lambda args=args, f=plain: f(*args)
        with _noted(rows, "torch.compile, reduce-overhead"):
            reduced = torch.compile(torch_update(p.row), mode="reduce-overhead")
            works["torch.compile, reduce-overhead"] = lambda args=args, f=reduced: f(*args)
        with _noted(rows, "CuPy"):
            import cupy

            q = Prepared(torch, device, shape, p.row)
            for there, here in zip((q.x, q.output, q.history[0]), before, strict=True):
                there.copy_(here)
            works |= cupy_updates(cupy, q)
        for name, work in works.items():
            rows[name] = {}
            with _noted(rows, name):
                made = [torch.as_tensor(v, device="cuda").float().cpu().numpy() for v in work()]
                errors = [largest_error(m, o.float().cpu().numpy()) for m, o in zip(made, ours_now, strict=True)]
                report.check(f"{name} does the same, {shape}", max(errors) <= 2e-3, f"errors {errors}")
                rows[name]["call_us"] = by_call(torch, work)
                if "CuPy" in name:
                    rows[name]["graph_us"] = in_cupy_graph(torch, cupy, work)
                elif "reduce" not in name:  # that is a graph by itself
                    rows[name]["graph_us"] = in_torch_graph(torch, work)
        _ratios(report, shape, rows)


class _noted:
    """Keeps what goes wrong with one rival as its entry's ``error``, and goes on."""

    def __init__(self, rows: dict[str, dict[str, Any]], name: str) -> None:
        self.rows, self.name = rows, name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        self.rows.setdefault(self.name, {})["error"] = f"{type(error).__name__}: {error}"[:2000]
        print(f"{self.name}: {type(error).__name__}: {error}"[:500])
        return True


def _ratios(report: Report, shape: Shape, rows: dict[str, dict[str, Any]]) -> None:
    """Divide each rival's time by ours: call by call, graph by graph, and its call by our share of the loop's graph."""
    mine = rows["edgediff"]
    for name, row in rows.items():
        for kind in ("call_us", "graph_us"):
            if kind in row and name != "edgediff":
                row[kind.replace("us", "ratio")] = round(row[kind] / mine[kind], 2)
        if "call_us" in row:
            row["call_over_our_graph"] = round(row["call_us"] / mine["graph_us"], 2)
    goals = [("torch", "call_ratio", ">= 10"), ("torch.compile, reduce-overhead", "call_ratio", ">= 2")]
    goals += [("torch.compile", kind, ">= 2") for kind in ("call_ratio", "graph_ratio")]
    for name, kind, goal in goals:
        if kind in rows.get(name, {}):
            report.goal(f"{name}, {kind}, {shape}", rows[name][kind], goal)
    for row in rows.values():
        row |= {kind: round(row[kind], 3) for kind in ("call_us", "graph_us") if kind in row}
    report.figures[" x ".join(map(str, shape))] = rows
