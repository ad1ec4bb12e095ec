"""Sensitive nodes lose the picture in fewer bits. They are found by running the graph, and stay in fp32."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ..onnx_graph.graph import Graph
from ..weight import Weight
from .fp16 import SHAPE_OPERATORS, float_tensors
from .quantize import FP16_MAX
from .session import Feed, run_graph

# Activations above this share of fp16's largest number are too near: other prompts go higher.
HEADROOM = 0.25
# Rounding a well-scaled tensor to fp16 moves it by 2e-4 of its norm; below fp16's smallest numbers it loses more.
MAX_LOSS = 4e-3
BLAME_SHARE = 0.1  # of the worst node's error; below it a node is not to blame
# Nodes that only move numbers about.
MOVES = ("Reshape", "Transpose", "Unsqueeze", "Squeeze", "Slice", "Concat", "Split", "Gather", "Identity", "Cast",
         "Expand", "DequantizeLinear")  # fmt: skip


def unfit_for_fp16(graph: Graph, feeds: Sequence[Feed]) -> dict[str, str]:
    """Find the nodes that fp16 cannot hold, with the reason for each.

    They give, read or weigh with numbers near or above its largest, or lose too much by rounding.
    """
    reasons: dict[str, str] = {}
    bad = {
        name: f"weights up to {peak:.3g}"
        for name, weight in graph.weights.items()
        if weight.dtype == np.float32 and (peak := float(np.abs(weight.read()).max(initial=0))) > FP16_MAX
    }
    for name, (peak, loss) in _measure(graph, feeds).items():
        if not peak <= FP16_MAX * HEADROOM:
            bad[name] = f"values up to {peak:.3g}"
        elif not loss <= MAX_LOSS:
            bad[name] = f"rounding loses {loss:.1%}"
    for node in graph.nodes:
        if node.op_type in SHAPE_OPERATORS:
            continue
        if node.op_type in MOVES and node.input[0] in bad:
            bad[node.output[0]] = bad[node.input[0]]
        for name in (*node.output, *node.input):
            if name in bad:
                reasons.setdefault(node.name, bad[name])
    return reasons


def _measure(graph: Graph, feeds: Sequence[Feed]) -> dict[str, tuple[float, float]]:
    """Measure the largest magnitude of each float tensor, and the share of its norm that rounding to fp16 takes."""
    graph = graph.copy()
    floats = float_tensors(graph)
    tensors: list[str] = []
    columns: list[str] = []
    nodes: list[onnx.NodeProto] = []
    graph.weights["/measure/one"] = Weight.of(np.array([1], np.int64), constant=True)
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
    for outputs in run_graph(graph, feeds, columns):
        for name, column in zip(tensors, columns, strict=True):
            peak, loss, norm = (float(v) for v in outputs[column])
            before = out.get(name, (0.0, 0.0))
            out[name] = max(before[0], peak), max(before[1], loss / norm if norm else 0.0)
    return out


def _measuring(tensor: str) -> tuple[list[onnx.NodeProto], str]:
    """Make the nodes that give (peak, what rounding takes, norm) of a tensor, and the name of what they give."""
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


class Probe:
    """A graph in fp32 whose tensors are looked at more than once: what it gives for a feed is kept."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.activations = {name for node in graph.nodes for name in node.output}
        self._kept: tuple[Feed, dict[str, NDArray[Any]]] | None = None

    def tensors(self, feed: Feed, names: Collection[str]) -> Mapping[str, NDArray[Any]]:
        """Give those tensors for a feed."""
        if self._kept is None or self._kept[0] is not feed or not set(names) <= set(self._kept[1]):
            self._kept = feed, run_graph(self.graph, [feed], names)[0]
        return self._kept[1]


def worst_nodes(reference: Probe, other: Graph, feed: Feed, operators: Collection[str] = ()) -> dict[str, float]:
    """Rank nodes (of ``operators``, or all) by how much relative error each adds to its inputs', worst first.

    Those far behind the worst are left out. The graphs compute the same tensors under the same names, ``other`` in
    fewer bits.
    """
    floats = float_tensors(other)
    shared = {name for node in other.nodes for name in node.output} & floats & reference.activations
    nodes = [n for n in reference.graph.nodes if n.op_type not in MOVES and n.output and n.output[0] in shared]
    tensors = sorted({name for n in nodes for name in (*n.output, *n.input) if name in shared})
    exact, changed = reference.tensors(feed, tensors), run_graph(other, [feed], tensors)[0]
    error = {}
    with np.errstate(all="ignore"):
        for name in tensors:
            norm = float(np.linalg.norm(exact[name])) or 1.0
            error[name] = float(np.nan_to_num(np.linalg.norm(changed[name] - exact[name]) / norm, nan=np.inf))
    added = {
        n.name: error[n.output[0]] - max((error.get(i, 0.0) for i in n.input), default=0.0)
        for n in nodes
        if not operators or n.op_type in operators
    }
    least = BLAME_SHARE * max(added.values(), default=0.0)
    return dict(sorted(((k, v) for k, v in added.items() if v > 0 and v >= least), key=lambda item: -item[1]))
