"""Facts of NVIDIA's driver that the device loop rests on, and that no document tells for certain.

    python -m benchmarks.gpu.driver             # where there is a GPU; half a minute, most of its memory for a moment
    python -m benchmarks.gpu.driver --stub      # every call once on a stub of the driver; its figures mean nothing

Needs cuda-bindings, cuda-core and NVRTC, and neither edgediff-kernels nor an engine. Writes
``results/driver-GPU.json``. Exit code 0, or 2 where there is no GPU, or 1 where a section fails.

sections   events      waiting for an event from a thread that has no context
           addresses   of 200 allocations from the pool: the power of two that all are multiples of
           pool        a large allocation freed to the pool, then as much by cuMemAlloc, with and without a trim
           copies      until a copy to the device returns that stands behind half a second of work
           graphs      until cuGraphLaunch returns, by the number of kernels in the graph
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, table, write
from benchmarks.gpu.raw_driver import RawDriver
from benchmarks.sections import Report, all_hold, checks_and_goals, run_here, slug
from edgediff.device.driver import probe
from edgediff.errors import EngineError

PACKAGES = ("cuda-core", "cuda-bindings", "cuda-pathfinder", "nvidia-cuda-nvrtc", "numpy")
BUSY_S = 0.5
COPIES = (48, 1 << 10, 4 << 10, 16 << 10, 64 << 10, (64 << 10) + 4, 256 << 10, 1 << 20)  # bytes
NODES = (1, 100, 1000)
SHARE = 0.75  # of the GPU's memory: two such blocks do not fit
TURNS = 50


def events(report: Report, cuda: RawDriver) -> None:
    """Wait for an event, and for the stream, on threads that have no current context."""
    event = cuda.event()
    for name, wait in (
        ("cuEventSynchronize", lambda: cuda.try_call("cuEventSynchronize", event)),
        ("cuEventQuery", lambda: cuda.try_call("cuEventQuery", event)),
        ("cuStreamSynchronize", lambda: cuda.try_call("cuStreamSynchronize", cuda.stream)),
    ):
        cuda.spin(BUSY_S / 2)
        cuda.call("cuEventRecord", event, cuda.stream)
        found: dict[str, Any] = {}

        def work(found: dict[str, Any] = found, wait: Callable[[], str] = wait) -> None:
            found["context_of_the_thread"] = int(cuda.call("cuCtxGetCurrent"))
            start = time.perf_counter()
            found["gave"] = wait()
            found["after_s"] = round(time.perf_counter() - start, 4)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        cuda.call("cuStreamSynchronize", cuda.stream)
        report.figures[f"{name} behind {BUSY_S / 2} s of work"] = found
        report.check(f"{name}: the thread has no context", found["context_of_the_thread"] == 0)


def addresses(report: Report, cuda: RawDriver) -> None:
    """Allocate 200 blocks of many sizes and look at their addresses."""
    sizes = [int(n) for n in np.random.default_rng(0).integers(1, 1 << 20, 200)]
    for name, take, give in (
        ("cuMemAllocAsync", cuda.take, cuda.give),
        ("cuMemAlloc", lambda size: int(cuda.call("cuMemAlloc", size)), lambda at: cuda.call("cuMemFree", at)),
    ):
        taken = [take(size) for size in sizes]
        report.figures[name] = {
            "blocks": len(taken),
            "largest_power_of_two_of_all_bytes": min(at & -at for at in taken),
            "blocks_by_address_modulo_512": dict(Counter(at % 512 for at in taken)),
        }
        report.check(f"{name}: all addresses are multiples of 256", all(at % 256 == 0 for at in taken))
        for at in taken:
            give(at)


def pool(report: Report, cuda: RawDriver, size: int) -> None:
    """Free a large block to the pool, and take as much from the driver, without and with a trim between."""
    report.figures["block_GB"] = round(size / 1e9, 3)
    for name, trims in (("without a trim", False), ("with cuMemPoolTrimTo(pool, 0)", True)):
        at = cuda.take(size)
        cuda.give(at)
        cuda.call("cuStreamSynchronize", cuda.stream)
        held = cuda.pool_reserved()
        start = time.perf_counter()
        if trims:
            cuda.call("cuMemPoolTrimTo", cuda.pool, 0)
        trimmed = time.perf_counter() - start
        gave, *block = cuda.both("cuMemAlloc", size)
        taken = time.perf_counter() - start - trimmed
        if gave == "CUDA_SUCCESS":
            cuda.call("cuMemFree", block[0])
        report.figures[name] = {
            "pool_reserved_after_free_bytes": held,
            "cuMemAlloc_gave": gave,
            "cuMemAlloc_s": round(taken, 4),
            "trim_s": round(trimmed, 4) if trims else None,
        }
        cuda.call("cuMemPoolTrimTo", cuda.pool, 0)


def copies(report: Report, cuda: RawDriver) -> None:
    """Copy behind half a second of work; one that waits for it takes as long."""
    most = max(COPIES)
    at, pinned = cuda.take(most), int(cuda.call("cuMemHostAlloc", most, 0))
    values = np.zeros(most, np.uint8)
    for source in (values.ctypes.data, pinned):  # what the first copies lay out is none of the others'
        cuda.call("cuMemcpyHtoDAsync", at, source, most, cuda.stream)
    cuda.call("cuStreamSynchronize", cuda.stream)
    for size in COPIES:
        row: dict[str, Any] = {}
        for kind, source in (("pageable", values.ctypes.data), ("pinned", pinned)):
            cuda.spin(BUSY_S)
            start = time.perf_counter()
            cuda.call("cuMemcpyHtoDAsync", at, source, size, cuda.stream)
            returned = time.perf_counter() - start
            cuda.call("cuStreamSynchronize", cuda.stream)
            row[f"{kind}_us"] = round(1e6 * returned, 2)
            row[f"{kind}_waits"] = returned > BUSY_S / 2
        report.figures[f"{size} bytes"] = row
    cuda.call("cuMemFreeHost", pinned)
    cuda.give(at)


def graphs(report: Report, cuda: RawDriver) -> None:
    """Launch graphs of empty kernels; the device is idle at each."""
    cuda.nothing()
    report.figures["a call of cuDriverGetVersion"] = {
        "host_us": _host_us(lambda: cuda.call("cuDriverGetVersion"), cuda)
    }
    report.figures["cuLaunchKernel"] = {"host_us": _host_us(cuda.nothing, cuda)}
    for count in NODES:
        graph = cuda.graph_of(lambda count=count: [cuda.nothing() for _ in range(count)])

        def launch(graph: Any = graph) -> None:
            cuda.call("cuGraphLaunch", graph, cuda.stream)

        host = _host_us(launch, cuda)
        start = time.perf_counter()
        for _ in range(TURNS):
            launch()
        cuda.call("cuStreamSynchronize", cuda.stream)
        device = 1e6 * (time.perf_counter() - start) / TURNS
        report.figures[f"graph of {count} kernels"] = {
            "host_us": host,
            "host_and_device_us_back_to_back": round(device, 2),
        }
        cuda.call("cuGraphExecDestroy", graph)


def _host_us(work: Callable[[], Any], cuda: RawDriver) -> float:
    """Give the microseconds until ``work`` returns: the median."""
    taken = []
    for turn in range(TURNS + 3):
        start = time.perf_counter()
        work()
        if turn >= 3:
            taken.append(time.perf_counter() - start)
        cuda.call("cuStreamSynchronize", cuda.stream)
    return round(1e6 * statistics.median(taken), 2)


def measure(stub: bool) -> tuple[str, dict[str, Any]]:
    """Run every section; give the GPU's name and what was found."""
    gpu = probe()
    cuda = RawDriver()
    size = 1 << 20 if stub else int(SHARE * gpu.memory)
    works: dict[str, Callable[[Report], None]] = {
        "events": lambda report: events(report, cuda),
        "addresses": lambda report: addresses(report, cuda),
        "pool": lambda report: pool(report, cuda, size),
        "copies": lambda report: copies(report, cuda),
        "graphs": lambda report: graphs(report, cuda),
    }
    found = {name: run_here(work) for name, work in works.items()}
    cuda.close()
    version = cuda.call("cuDriverGetVersion")
    return gpu.name, {"gpu": {"name": gpu.name, "driver_cuda": int(version), "memory_bytes": gpu.memory}, **found}


def on_a_stub(arguments: list[str]) -> int:
    """Run this script again where the driver is the stub of the tests."""
    from tests.device.stub.library import compile_stub, environment, why_not

    if why := why_not():
        print(why)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.gpu.driver", *arguments, "--here"]
        return subprocess.run(command, env=environment(compile_stub(Path(folder)))).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stub", action="store_true", help="make every call on a stub of the driver")
    parser.add_argument("--out", type=Path, help="a folder for the JSON, in place of benchmarks/results")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stub and not args.here:
        return on_a_stub(sys.argv[1:])
    try:
        name, found = measure(args.stub)
    except EngineError as error:
        print(f"no GPU to run on: {error}")
        return 2
    parts = {key: part for key, part in found.items() if key != "gpu"}
    print(*checks_and_goals(parts), sep="\n\n")
    for title, part in parts.items():
        rows = [[key, value] for key, value in part["figures"].items()]
        print("\n" + table([title, "found"], rows))
    if args.stub and args.out is None:
        print("\nOn a stub of the driver: these figures mean nothing, and none was written.")
    else:
        print(
            f"\n{write('driver-stub' if args.stub else f'driver-{slug(name)}', found, PACKAGES, args.out or RESULTS)}"
        )
    return 0 if all_hold(parts) else 1


if __name__ == "__main__":
    sys.exit(main())
