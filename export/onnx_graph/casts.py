"""Casts that change nothing leave a traced graph, so that it is the same with every release of diffusers.

diffusers before 0.36 casts the states of its autoencoder to the type that they have.
"""

from __future__ import annotations

import onnx


def drop_idle_casts(model: onnx.ModelProto) -> None:
    """Take away every cast of a tensor to its own type, unless it gives one of the graph's outputs."""
    graph = model.graph
    casts = [node for node in graph.node if node.op_type == "Cast"]
    if not casts:
        return
    inferred = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input)}
    outputs = {v.name for v in graph.output}
    idle = {
        node.output[0]: node.input[0]
        for node in casts
        if types.get(node.input[0]) == node.attribute[0].i and node.output[0] not in outputs
    }
    if not idle:
        return
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node if n.output[0] not in idle]
    for node in kept:
        for k, name in enumerate(node.input):
            while name in idle:
                name = idle[name]
            node.input[k] = name
    del graph.node[:]
    graph.node.extend(kept)
