"""That the graphs for TensorRT hold only what its parser is documented to take, by operator and type."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, shape_inference

from edgediff.bundle.reading import read_bundle
from edgediff.engines.tensorrt.source import source_of

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16}
WHOLE = {TensorProto.INT32, TensorProto.INT64}
BOOL = {TensorProto.BOOL}
# onnx-tensorrt's docs/operators.md for TensorRT 10.15, as far as our graphs go: the type of the first input.
TAKES = {
    **dict.fromkeys(
        ("Cos", "Sin", "Conv", "Erf", "Exp", "Gemm", "InstanceNormalization", "LayerNormalization"), FLOATS
    ),
    **dict.fromkeys(("MatMul", "Resize", "Sigmoid", "Softmax", "Sqrt", "Tanh", "Clip", "Relu", "Gelu"), FLOATS),
    **dict.fromkeys(("Add", "Div", "Equal", "Less", "Max", "Min", "Mul", "Pow", "Range", "Sub", "Neg"), FLOATS | WHOLE),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ArgMax", "Greater", "Pad"), FLOATS | WHOLE),
    **dict.fromkeys(("Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape"), FLOATS | WHOLE | BOOL),
    **dict.fromkeys(("Shape", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"), FLOATS | WHOLE | BOOL),
    **dict.fromkeys(("GatherND", "GatherElements", "ConstantOfShape"), FLOATS | WHOLE | BOOL),
    **dict.fromkeys(("And", "Not", "Or", "Where"), BOOL),
    "Constant": set[int](),
}
TAKES["Cast"] = TAKES["Cast"] | {TensorProto.DOUBLE}  # which its parser narrows to float32
NEAREST = {"floor", "ceil", "round_prefer_floor", "round_prefer_ceil"}
MODES = {"half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"}


def refused(path: Path) -> list[str]:
    """Nodes that TensorRT's parser is not documented to take."""
    model = shape_inference.infer_shapes(onnx.load(str(path), load_external_data=False))
    graph = model.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    out = []
    for node in graph.node:
        kind = types.get(node.input[0]) if node.input else None
        if node.domain == "com.microsoft":
            continue  # its plain twin is built
        if node.op_type not in TAKES or (kind is not None and TAKES[node.op_type] and kind not in TAKES[node.op_type]):
            out.append(f"{node.op_type} of {None if kind is None else TensorProto.DataType.Name(kind)}: {node.name}")
        if node.op_type == "Resize":
            facts = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            mode = facts.get("coordinate_transformation_mode", b"half_pixel").decode()
            if mode not in MODES or facts.get("nearest_mode", b"round_prefer_floor").decode() not in NEAREST:
                out.append(f"Resize by {mode}: {node.name}")
    return out


def test_half(half_bundle: Path) -> None:
    bundle = read_bundle(half_bundle)
    for part in bundle.parts:
        path = source_of(bundle, part).path
        assert refused(path) == []
        domains = {node.domain for node in onnx.load(str(path), load_external_data=False).graph.node}
        assert domains <= {"", "ai.onnx"}


@pytest.mark.parametrize("name", ["sdxl", "lcm", "inpaint", "taesd", "pixel-text"])
def test_families(family_bundle: Callable[[str], Path], name: str) -> None:
    """Of their fp32 graphs; fp16 changes types of floats alone."""
    root = family_bundle(name)
    for part in read_bundle(root).parts.values():
        assert refused(root / part.files[0].path) == []
