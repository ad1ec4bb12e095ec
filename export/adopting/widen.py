"""A graph in fp16 becomes one in fp32 with the same weights, so that every precision can be made of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from edgediff.errors import BundleError

from ..onnx_graph.graph import Graph
from ..weight import Array, Weight

HALF, FULL = TensorProto.FLOAT16, TensorProto.FLOAT
TYPES = ("to", "dtype")  # attributes that name a type


def is_half(graph: Graph) -> bool:
    """Whether a graph computes in fp16: it has weights of it, or inputs."""
    values = [*graph.model.graph.input, *graph.model.graph.output]
    typed = any(v.type.tensor_type.elem_type == HALF for v in values)
    return typed or any(w.dtype == np.float16 for w in graph.weights.values())


def widened(graph: Graph, name: str) -> Graph:
    """Return the graph with every fp16 tensor in fp32.

    Args:
        name: the part's, for messages.

    Raises:
        BundleError: a graph inside a node, which is not gone through.
    """
    out = graph.copy()
    for value in [*out.model.graph.input, *out.model.graph.output]:
        if value.type.tensor_type.elem_type == HALF:
            value.type.tensor_type.elem_type = FULL
    for node in out.model.graph.node:
        for attribute in node.attribute:
            if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                raise BundleError(f"{name}: its graph is in fp16 and holds a graph in {node.op_type} {node.name!r}")
            if attribute.name in TYPES and attribute.i == HALF:
                attribute.i = FULL
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == HALF:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float32)))
    for key, weight in out.weights.items():
        if weight.dtype == np.float16:
            out.weights[key] = Weight(weight.shape, np.dtype(np.float32), _wide(weight.read), mapped=weight.mapped)
    return out


def _wide(read: Callable[[], Array]) -> Callable[[], Array]:
    return lambda: read().astype(np.float32)
