"""What ``load(isolated=True)`` costs: a picture of the built-in model, and one call with SD 1.5's arrays.

    python -m benchmarks.isolation [--runs 20] [--calls 300]

Both ways in one run, in turn. A graph that does next to nothing shows what passing the arrays of SD 1.5's U-Net (batch
2, 512 pixels, 77 tokens) costs by itself.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

import edgediff
from benchmarks.common import table, write
from edgediff import Limits
from edgediff.bundle.manifest import Part, Tensor
from edgediff.engines.isolation.limits import held
from edgediff.engines.isolation.opened import IsolatedEngine
from edgediff.engines.isolation.process import Child
from edgediff.engines.session import OnnxRuntimeEngine

SHAPES = {"sample": (2, 4, 64, 64), "timestep": (2,), "encoder_hidden_states": (2, 77, 768)}


def seconds(what: Callable[[], Any]) -> float:
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def pictures(runs: int) -> dict[str, Any]:
    """The built-in model, 20 steps, pair by pair."""

    def draw(pipe: edgediff.Pipeline, seed: int) -> Any:
        return pipe("a red apple on a blue background", num_inference_steps=20, seed=seed, output_type="np").array

    pipes: dict[str, edgediff.Pipeline] = {}
    opening = {}
    for name, isolated in (("imports", False), ("plain", False), ("isolated", True)):  # the first one pays for imports
        opening[name] = seconds(lambda: pipes.update({name: edgediff.load(isolated=isolated).warm()}))  # noqa: B023
    times: dict[str, list[float]] = {"plain": [], "isolated": []}
    equal = True
    for run in range(runs + 2):
        drawn = {}
        for name, taken in times.items():
            taken.append(seconds(lambda: drawn.update({name: draw(pipes[name], run)})))  # noqa: B023
        equal &= drawn["plain"].tobytes() == drawn["isolated"].tobytes()
    ratios = [b / a for a, b in zip(times["plain"][2:], times["isolated"][2:], strict=True)]
    isolation = pipes["isolated"]._isolation
    assert isolation is not None
    child = isolation._child._running
    assert child is not None
    status = Path(f"/proc/{child._process.pid}/status").read_text(encoding="utf-8")
    held_by = {line.split(":")[0]: int(line.split()[1]) for line in status.splitlines() if line.startswith("Rss")}
    return {
        "picture_s": round(statistics.median(times["plain"][2:]), 4),
        "picture_isolated_s": round(statistics.median(times["isolated"][2:]), 4),
        "ratio": {"min": round(min(ratios), 3), "median": round(statistics.median(ratios), 3),
                  "max": round(max(ratios), 3)},
        "equal": bool(equal),
        "open_s": round(opening["plain"], 3),
        "open_isolated_s": round(opening["isolated"], 3),
        "child_own_mb": round(held_by["RssAnon"] / 1000),
        "child_files_mb": round(held_by["RssFile"] / 1000),
    }  # fmt: skip


def passing(calls: int) -> dict[str, Any]:
    """One call of a graph that returns its sample, in milliseconds."""
    value = helper.make_tensor_value_info
    inputs = [value(name, TensorProto.FLOAT, list(shape)) for name, shape in SHAPES.items()]
    node = helper.make_node("Neg", ["sample"], ["out_sample"])
    graph = helper.make_graph([node], "neg", inputs, [value("out_sample", TensorProto.FLOAT, list(SHAPES["sample"]))])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    part = Part(
        (),
        tuple(Tensor(name, "float32", shape) for name, shape in SHAPES.items()),
        (Tensor("out_sample", "float32", SHAPES["sample"]),),
    )
    feed = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder).resolve() / "neg.onnx"
        onnx.save(model, str(path))
        child = Child(held(Limits(), 1 << 30), lambda: [path])
        engines: list[Any] = [OnnxRuntimeEngine("unet", path, part)]
        engines.append(IsolatedEngine(child, "unet", lambda: path, part, None))
        times: list[list[float]] = [[], []]
        for _ in range(calls + 20):
            for engine, taken in zip(engines, times, strict=True):
                taken.append(seconds(lambda: engine(**feed)))  # noqa: B023
        child.close()
    plain, isolated = (1000 * statistics.median(taken[20:]) for taken in times)
    return {
        "call_ms": round(plain, 3),
        "call_isolated_ms": round(isolated, 3),
        "passing_ms": round(isolated - plain, 3),
        "passed_bytes": sum(array.nbytes for array in feed.values()) + feed["sample"].nbytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--calls", type=int, default=300)
    args = parser.parse_args()
    results = {"pictures": pictures(args.runs), "passing": passing(args.calls)}
    print(table(["measure", "value"], [row for part in results.values() for row in part.items()]))
    write("isolation", results, ("edgediff", "numpy", "onnxruntime", "tokenizers"))


if __name__ == "__main__":
    main()
