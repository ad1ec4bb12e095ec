"""Which nodes of a graph lose the picture in fewer bits: found by running it, so that they can be left in fp32."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgediff.engines.onnxruntime import import_onnxruntime

from .half import EITHER, float_tensors
from .onnx_graph.graph import Graph, Weight, write_graph
from .quantize import HALF_MAX

Feed = Mapping[str, NDArray[Any]]
# Activations above this share of fp16's largest number are too near: other prompts go higher.
HEADROOM = 0.25
# Rounding a well-scaled tensor to fp16 moves it by 2e-4 of its norm; below fp16's smallest numbers it loses more.
MAX_LOSS = 4e-3
NEAR = 0.1  # of the worst node's error; below it a node is not to blame
# Nodes that only move numbers about.
MOVES = ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Slice", "Concat", "Split", "Gather", "Identity", "Cast",
         "Expand", "DequantizeLinear")  # fmt: skip


def session(path: Path, *, exact: bool = False) -> Any:
    """A graph's session, made to take little memory; ``exact`` keeps every node as it is written."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # an arena grows by doubling
    if exact:
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_mem_pattern = False
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # as listed, so that tensors go when they can
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(graph: Graph, feeds: Sequence[Feed], scratch: Path, outputs: Collection[str] = ()) -> list[dict[str, Any]]:
    """The graph's outputs, or those tensors of it, for each feed. ``scratch`` is a folder with room for the weights."""
    graph = graph.copy()
    names = list(outputs) or [o.name for o in graph.model.graph.output]
    known = {o.name for o in graph.model.graph.output}
    for name in names:
        if name not in known:
            graph.model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "probed.onnx"
        write_graph(graph, path)
        opened = session(path, exact=True)
        return [dict(zip(names, opened.run(names, dict(feed)), strict=True)) for feed in feeds]


def unfit_for_half(graph: Graph, feeds: Sequence[Feed], scratch: Path) -> dict[str, str]:
    """Nodes that fp16 cannot hold, with the reason: they give, read or weigh with numbers near or above its largest, or
    lose too much by rounding.
    """
    reasons: dict[str, str] = {}
    bad = {
        name: f"weights up to {peak:.3g}"
        for name, weight in graph.weights.items()
        if weight.dtype == np.float32 and (peak := float(np.abs(weight.read()).max(initial=0))) > HALF_MAX
    }
    for name, (peak, loss) in _measure(graph, feeds, scratch).items():
        if not peak <= HALF_MAX * HEADROOM:
            bad[name] = f"values up to {peak:.3g}"
        elif not loss <= MAX_LOSS:
            bad[name] = f"rounding loses {loss:.1%}"
    for node in graph.nodes:
        if node.op_type in EITHER:
            continue
        if node.op_type in MOVES and node.input[0] in bad:
            bad[node.output[0]] = bad[node.input[0]]
        for name in (*node.output, *node.input):
            if name in bad:
                reasons.setdefault(node.name, bad[name])
    return reasons


def _measure(graph: Graph, feeds: Sequence[Feed], scratch: Path) -> dict[str, tuple[float, float]]:
    """The largest magnitude of each float tensor, and the share of its norm that rounding to fp16 takes."""
    graph = graph.copy()
    floats = float_tensors(graph)
    tensors: list[str] = []
    columns: list[str] = []
    nodes: list[onnx.NodeProto] = []
    graph.weights["/measure/one"] = Weight.of(np.array([1], np.int64))
    for node in graph.nodes:
        nodes.append(node)
        for name in node.output:
            if node.op_type not in MOVES and name in floats:
                measuring, column = _measuring(name)
                nodes += measuring
                tensors.append(name)
                columns.append(column)
    graph.replace_nodes(nodes)
    out: dict[str, tuple[float, float]] = {}
    for found in run(graph, feeds, scratch, columns):
        for name, column in zip(tensors, columns, strict=True):
            peak, loss, norm = (float(v) for v in found[column])
            before = out.get(name, (0.0, 0.0))
            out[name] = max(before[0], peak), max(before[1], loss / norm if norm else 0.0)
    return out


def _measuring(tensor: str) -> tuple[list[onnx.NodeProto], str]:
    """Nodes that make (peak, what rounding takes, norm) of a tensor, and the name of that."""
    label = f"/measure/{tensor}"
    nodes: list[onnx.NodeProto] = []

    def op(kind: str, output: str, *inputs: str, **more: Any) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [f"{label}/{output}"], name=f"{label}/{output}", **more))
        return f"{label}/{output}"

    half = op("Cast", "fp16", tensor, to=TensorProto.FLOAT16)
    lost = op("Sub", "lost", tensor, op("Cast", "fp32", half, to=TensorProto.FLOAT))
    facts = [
        op("ReduceMax", "peak", op("Abs", "abs", tensor), keepdims=0),
        op("ReduceL2", "loss", lost, keepdims=0),
        op("ReduceL2", "norm", tensor, keepdims=0),
    ]
    flat = [op("Reshape", f"flat{k}", fact, "/measure/one") for k, fact in enumerate(facts)]
    return nodes, op("Concat", "facts", *flat, axis=0)


def worst_nodes(
    reference: Graph, other: Graph, feed: Feed, scratch: Path, operators: Collection[str] = ()
) -> dict[str, float]:
    """Nodes (of ``operators`` where there are any) by how much relative error each adds to its inputs', worst first;
    those far behind the worst are left out.

    The graphs compute the same tensors under the same names, ``other`` in fewer bits.
    """
    floats = float_tensors(other)
    shared = {name for node in other.nodes for name in node.output} & floats
    nodes = [n for n in reference.nodes if n.op_type not in MOVES and n.output and n.output[0] in shared]
    tensors = sorted({name for n in nodes for name in (*n.output, *n.input) if name in shared})
    wanted, found = (run(g, [feed], scratch, tensors)[0] for g in (reference, other))
    error = {}
    with np.errstate(all="ignore"):
        for name in tensors:
            norm = float(np.linalg.norm(wanted[name])) or 1.0
            error[name] = float(np.nan_to_num(np.linalg.norm(found[name] - wanted[name]) / norm, nan=np.inf))
    added = {
        n.name: error[n.output[0]] - max((error.get(i, 0.0) for i in n.input), default=0.0)
        for n in nodes
        if not operators or n.op_type in operators
    }
    least = NEAR * max(added.values(), default=0.0)
    return dict(sorted(((k, v) for k, v in added.items() if v > 0 and v >= least), key=lambda item: -item[1]))
