"""Attention is one node, ``com.microsoft.MultiHeadAttention``, or the same written plainly.

One node lets ONNX Runtime work in blocks and never hold the (tokens x tokens) scores, which at 512x512 are most of a
U-Net's memory. TensorRT fuses the plain form MatMul -> Softmax -> MatMul by itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper

from ..weight import Weight
from .graph import Graph

FUSED, DOMAIN = "MultiHeadAttention", "com.microsoft"


def plain(graph: Graph) -> Graph:
    """Copy the graph with every fused node written as MatMul -> Softmax -> MatMul on (batch, heads, tokens, width).

    The scale goes to the query. The new nodes' names begin with the fused one's.
    """
    out = graph.copy()
    nodes = []
    for node in out.nodes:
        nodes += _written_out(node, out.weights) if node.op_type == FUSED else [node]
    out.replace_nodes(nodes)
    kept = [o for o in out.model.opset_import if o.domain != DOMAIN or any(n.domain == DOMAIN for n in nodes)]
    del out.model.opset_import[:]
    out.model.opset_import.extend(kept)
    return out


def _written_out(node: onnx.NodeProto, weights: dict[str, Weight]) -> list[onnx.NodeProto]:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    name = node.name
    made: list[onnx.NodeProto] = []

    def op(kind: str, label: str, *inputs: str, **more: Any) -> str:
        output = f"{name}/{label}"
        made.append(helper.make_node(kind, list(inputs), [output], name=output, **more))
        return output

    def constant(label: str, value: Any) -> str:
        weights[f"{name}/{label}"] = Weight.of(np.asarray(value))
        return f"{name}/{label}"

    split = constant("split", np.array([0, 0, attributes["num_heads"], -1], np.int64))
    heads = [op("Reshape", f"{label}_heads", tensor, split) for label, tensor in zip("qkv", node.input, strict=False)]
    q = op("Transpose", "q", heads[0], perm=[0, 2, 1, 3])
    k = op("Transpose", "k", heads[1], perm=[0, 2, 3, 1])
    v = op("Transpose", "v", heads[2], perm=[0, 2, 1, 3])
    scaled = op("Mul", "q_scaled", q, constant("scale", np.array(attributes["scale"], np.float32)))
    weighed = op("Softmax", "softmax", op("MatMul", "scores", scaled, k), axis=-1)
    merged = op("Transpose", "merged", op("MatMul", "values", weighed, v), perm=[0, 2, 1, 3])
    join = constant("join", np.array([0, 0, -1], np.int64))
    made.append(helper.make_node("Reshape", [merged, join], [node.output[0]], name=f"{name}/out"))
    return made
