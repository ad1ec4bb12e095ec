"""Weights stored in fp16 and computed in fp32: half the file, the same graph."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SMALLEST = 64  # elements; below it a cast costs more bytes than it saves


def store_fp16(model: onnx.ModelProto) -> int:
    """Replace float32 initialisers by fp16 ones behind a Cast, in place; returns how many.

    A tensor whose magnitudes fp16 cannot hold (above 65504) stays as it is. Engines fold the casts when they load.
    """
    casts, kept = [], []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor) if tensor.data_type == TensorProto.FLOAT else None
        if values is None or values.size < SMALLEST or np.abs(values).max() > np.finfo(np.float16).max:
            kept.append(tensor)
            continue
        half = tensor.name + ".fp16"
        kept.append(numpy_helper.from_array(values.astype(np.float16), half))
        casts.append(helper.make_node("Cast", [half], [tensor.name], name=half + ".cast", to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.initializer[:]
    del model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)
    return len(casts)
