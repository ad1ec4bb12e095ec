"""A graph turns to fp16, with chosen nodes left in fp32; or stays in fp32 with every rounding made visible.

ONNX Runtime computes fp16 graphs on a CPU in fp32 and skips the roundings between nodes, so an overflow does not show.
``rounded`` puts them back as casts, which it respects: what an engine that computes in fp16 and sums in fp32 gives.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from ..onnx_graph.fused_node import DOMAIN
from ..onnx_graph.graph import Graph
from ..weight import Array, Weight
from .quantize import ANGLES, weight_in_fp16

# Inputs that the operator wants in fp32 whatever its data are.
FP32_INPUTS = {("Resize", 1), ("Resize", 2)}
# Operators that make their floats of nothing.
GENERATORS = ("Range", "ConstantOfShape", "RandomNormal")
SHAPE_OPERATORS = ("Shape", "Size")  # read any type and give none


def to_fp16(graph: Graph, keep: Collection[str] = ()) -> Graph:
    """Give the graph fp16 tensors and weights between fp32 inputs and outputs; nodes named in ``keep`` stay in fp32."""
    walk = _Walk(graph, keep)
    nodes, weights = [], {}
    casts: dict[tuple[str, bool], str] = {}

    def cast(name: str, half: bool) -> str:
        if (name, half) not in casts:
            casts[name, half] = made = f"{name}.{'fp16' if half else 'fp32'}"
            to = TensorProto.FLOAT16 if half else TensorProto.FLOAT
            nodes.append(helper.make_node("Cast", [name], [made], name=made + ".cast", to=to))
        return casts[name, half]

    for node in walk.nodes():
        half = walk.half(node)
        for k, name in walk.float_inputs(node):
            as_fp16 = half and (node.op_type, k) not in FP32_INPUTS
            if name in graph.weights:
                weight = graph.weights[name]
                node.input[k] = name + ".fp16" if as_fp16 else name
                weights[node.input[k]] = weight_in_fp16(weight) if as_fp16 else weight
            elif walk.is_half[name] and name in walk.outputs:  # there in both, see below
                node.input[k] = name + ".fp16" if as_fp16 else name
            elif walk.is_half[name] != as_fp16:
                node.input[k] = cast(name, as_fp16)
        if node.op_type == "Cast" and half:
            for attribute in node.attribute:
                attribute.i = TensorProto.FLOAT16
        for k, name in enumerate(node.output):
            if half and name in walk.outputs:
                node.output[k] = name + ".fp16"
                nodes += [node, helper.make_node("Cast", [node.output[k]], [name], name=name + ".cast", to=1)]
                break
        else:
            nodes.append(node)
    return _with(graph, nodes, weights)


def rounded(graph: Graph, keep: Collection[str] = ()) -> Graph:
    """Round to fp16 in the fp32 graph wherever ``to_fp16(graph, keep)`` holds fp16."""
    walk = _Walk(graph, keep)
    nodes, weights = [], {}
    done: dict[str, str] = {}

    def through_half(name: str, output: str) -> None:
        between = output + "/fp16"
        nodes.append(helper.make_node("Cast", [name], [between], name=between, to=TensorProto.FLOAT16))
        nodes.append(helper.make_node("Cast", [between], [output], name=output + "/fp32", to=TensorProto.FLOAT))

    for node in walk.nodes():
        half = walk.half(node)
        for k, name in walk.float_inputs(node):
            as_fp16 = half and (node.op_type, k) not in FP32_INPUTS
            if name in graph.weights:
                node.input[k] = name + "/rounded" if as_fp16 else name
                weights[node.input[k]] = _rounded(graph.weights[name]) if as_fp16 else graph.weights[name]
            elif as_fp16 and not walk.is_half[name]:
                if name not in done:
                    done[name] = name + "/rounded"
                    through_half(name, done[name])
                node.input[k] = done[name]
        exact = [(k, name) for k, name in enumerate(node.output) if half and name in walk.floats]
        for k, name in exact:
            node.output[k] = name + "/exact"
        nodes.append(node)
        for _, name in exact:
            through_half(name + "/exact", name)
    return _with(graph, nodes, weights)


def float_tensors(graph: Graph) -> set[str]:
    """Name the float32 tensors: inputs, weights, and what nodes give."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    for name, weight in graph.weights.items():
        kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
        model.graph.input.append(helper.make_tensor_value_info(name, kind, list(weight.shape)))
    for node in model.graph.node:
        if node.domain == DOMAIN:  # onnx cannot tell
            shapeless = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
            model.graph.value_info.append(helper.make_value_info(node.output[0], shapeless))
    inferred = onnx.shape_inference.infer_shapes(model)
    known = [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]
    return {v.name for v in known if v.type.tensor_type.elem_type == TensorProto.FLOAT}


@dataclass
class _Walk:
    """Tells which nodes of a graph compute in fp16, and which tensors come out of them."""

    graph: Graph
    keep: Collection[str]

    def __post_init__(self) -> None:
        self.floats = float_tensors(self.graph)
        self.outputs = {o.name for o in self.graph.model.graph.output}
        self.kept = set(self.keep) | self.graph.before(ANGLES)
        self.is_half: dict[str, bool] = {i.name: False for i in self.graph.model.graph.input}
        for node in self.graph.nodes:
            self.is_half |= {name: self.half(node) for name in node.output}

    def half(self, node: onnx.NodeProto) -> bool:
        """Whether a node computes in fp16."""
        touches = any(name in self.floats for name in (*node.input, *node.output))
        computes = touches and node.op_type not in (*GENERATORS, *SHAPE_OPERATORS)
        if node.op_type == "Cast":  # from whole numbers, or to them
            computes = node.output[0] in self.floats
        return computes and node.name not in self.kept

    def float_inputs(self, node: onnx.NodeProto) -> list[tuple[int, str]]:
        """List (position, name) of the inputs whose precision matters."""
        if node.op_type in SHAPE_OPERATORS or (node.op_type == "Cast" and node.output[0] not in self.floats):
            return []
        return [(k, name) for k, name in enumerate(node.input) if name in self.floats]

    def nodes(self) -> Iterable[onnx.NodeProto]:
        """Copy the nodes, to change them."""
        return [onnx.NodeProto.FromString(n.SerializeToString()) for n in self.graph.nodes]


def _rounded(weight: Weight) -> Weight:
    half = weight_in_fp16(weight)
    if half.mapped is not None:
        return weight  # a file holds it in fp16

    def read() -> Array:
        return half.read().astype(np.float32)

    return Weight(weight.shape, np.dtype(np.float32), read, weight.constant, mapped=half.read)


def _with(graph: Graph, nodes: list[onnx.NodeProto], weights: dict[str, Weight]) -> Graph:
    others = {name: w for name, w in graph.weights.items() if w.dtype != np.float32}
    out = Graph(onnx.ModelProto(), {**others, **weights})
    out.model.CopyFrom(graph.model)
    del out.model.graph.value_info[:]
    out.replace_nodes(nodes)
    out.drop_unused()
    return out
