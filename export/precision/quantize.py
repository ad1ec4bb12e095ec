"""Weights take fewer bits: stored in fp16, in int8, or multiplied in int8."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ..onnx_graph.fused_node import DOMAIN
from ..onnx_graph.graph import DATA_LIMIT, Graph
from ..weight import Array, Weight

SMALLEST = 64  # elements; below it a cast costs more bytes than it saves
FP16_MAX = float(np.finfo(np.float16).max)
# Operators that need more digits than fp16 has, with all before them: the angles of timesteps go to 1000 radians.
ANGLES = ("Sin", "Cos")
# The axis of the output channels of each operator's weight, as a module of torch traces.
CHANNEL = {"Conv": 0, "MatMul": 1, "Gemm": 0}


def store_fp16(graph: Graph, keep: Collection[str] = ()) -> int:
    """Store float32 weights in fp16 behind a Cast: half the file, the same arithmetic; return how many.

    What fp16 cannot hold (above 65504), the weights of the nodes named in ``keep``, and the graph's own constants stay
    as they are: a timestep's sinusoids have frequencies that are multiplied by 1000. Engines fold
    the casts when they load, and then hold both forms at once; so in large graphs the weights are inputs with a default
    too, which cannot be folded: they are widened as they are used.
    """
    large = sum(w.size for w in graph.weights.values()) > 2 * DATA_LIMIT
    kept = {name for node in graph.nodes if node.name in keep for name in node.input} | graph.read_before(ANGLES)
    casts = []
    for name, weight in list(graph.weights.items()):
        if weight.dtype != np.float32 or weight.constant or np.prod(weight.shape) < SMALLEST or name in kept:
            continue
        half = name + ".fp16"
        changed = weight_in_fp16(weight)
        if changed.mapped is None and np.abs(weight.read()).max() > FP16_MAX:
            continue
        graph.weights[half] = changed
        if large:
            value = helper.make_tensor_value_info(half, TensorProto.FLOAT16, list(weight.shape))
            graph.model.graph.input.append(value)
        casts.append(helper.make_node("Cast", [half], [name], name=half + ".cast", to=TensorProto.FLOAT))
        del graph.weights[name]
    graph.replace_nodes([*casts, *graph.nodes])
    return len(casts)


def weight_in_fp16(weight: Weight) -> Weight:
    """Turn a weight to fp16; infinite where it does not fit. What a file holds in fp16 is that."""
    mapped = weight.mapped
    if mapped is not None and mapped().dtype == np.float16:
        half = Weight(weight.shape, np.dtype(np.float16), mapped, mapped=mapped)
        return replace(half, read=lambda: mapped().T, turned=True) if weight.turned else half

    def read() -> Array:
        with np.errstate(over="ignore"):
            return weight.read().astype(np.float16)

    return Weight(weight.shape, np.dtype(np.float16), read, weight.constant)


def store_int8(graph: Graph, keep: Collection[str] = ()) -> int:
    """Store the weights of convolutions and linears in int8, with a scale for each output channel; return how many.

    They are dequantised as they are used: a quarter of the memory, float32 arithmetic.
    """
    made: dict[str, onnx.NodeProto] = {}
    for node in graph.nodes:
        if (axis := quantisable(graph, node)) is None or node.name in keep:
            continue
        name = node.input[1]
        if name not in made:
            _add_int8(graph, name, axis)
            inputs = [name + ".int8", name + ".scale"]
            made[name] = helper.make_node("DequantizeLinear", inputs, [name], name=name + ".dequantize", axis=axis)
    graph.replace_nodes([*made.values(), *graph.nodes])
    graph.weights = {k: w for k, w in graph.weights.items() if k not in made}
    return len(made)


def multiply_int8(graph: Graph, keep: Collection[str] = ()) -> int:
    """Multiply linears in int8; return how many.

    Weights are as in ``store_int8``, activations are quantised as they come (one scale a tensor). Convolutions stay,
    since in int8 they are slower.
    """
    users = graph.users()
    graph_outputs = {o.name for o in graph.model.graph.output}
    nodes, gone, count = [], set(), 0
    for node in graph.nodes:
        after = users.get(node.output[0], []) if node.op_type == "MatMul" else []
        kept = node.name in keep or (len(after) == 1 and after[0].name in keep)
        if node.op_type != "MatMul" or quantisable(graph, node) is None or kept:
            nodes.append(node)
            continue
        name, output, bias = node.input[1], node.output[0], ""
        if len(after) == 1 and after[0].op_type == "Add" and output not in graph_outputs:
            other = [i for i in after[0].input if i != output]
            if other and other[0] in graph.weights and len(graph.weights[other[0]].shape) == 1:
                bias, output = other[0], after[0].output[0]
                gone.add(after[0].name)
        if name + ".int8" not in graph.weights:
            _add_int8(graph, name, CHANNEL["MatMul"])
        inputs = [node.input[0], name + ".int8", name + ".scale", "", bias]
        nodes.append(helper.make_node("DynamicQuantizeMatMul", inputs, [output], name=node.name, domain=DOMAIN))
        count += 1
    graph.replace_nodes([n for n in nodes if n.name not in gone])
    graph.require(DOMAIN, 1)
    graph.drop_unused()
    return count


def quantisable(graph: Graph, node: onnx.NodeProto) -> int | None:
    """Tell the axis of the output channels of a node's weight; None for nodes without one."""
    if node.op_type not in CHANNEL or len(node.input) < 2:
        return None
    weight = graph.weights.get(node.input[1])
    if weight is None or weight.dtype != np.float32 or weight.constant or len(weight.shape) < 2:
        return None
    return CHANNEL[node.op_type]


def _add_int8(graph: Graph, name: str, axis: int) -> None:
    weight = graph.weights[name]
    scale = _scale(weight.read(), axis)
    graph.weights[name + ".int8"] = Weight(
        weight.shape, np.dtype(np.int8), lambda: _rounded(weight.read(), scale, axis)
    )
    graph.weights[name + ".scale"] = Weight.of(scale)


def _scale(values: Array, axis: int) -> NDArray[np.float32]:
    """Divide the largest value of each channel by 127."""
    others = tuple(k for k in range(values.ndim) if k != axis)
    peak: NDArray[np.float32] = np.abs(values).max(axis=others).astype(np.float32)
    out: NDArray[np.float32] = np.where(peak > 0, peak / np.float32(127), np.float32(1))
    return out


def _rounded(values: NDArray[Any], scale: NDArray[np.float32], axis: int) -> NDArray[np.int8]:
    along = scale.reshape([-1 if k == axis else 1 for k in range(values.ndim)])
    out: NDArray[np.int8] = np.rint(values / along).clip(-127, 127).astype(np.int8)
    return out
