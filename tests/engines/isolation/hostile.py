"""Bundles that are right by every checksum, and mean harm."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

INPUTS = (
    ("sample", TensorProto.FLOAT, ["batch", 4, "latent_height", "latent_width"]),
    ("timestep", TensorProto.FLOAT, ["batch"]),
    ("encoder_hidden_states", TensorProto.FLOAT, ["batch", "tokens", 32]),
)
OUTPUT = ("out_sample", TensorProto.FLOAT, ["batch", 4, "latent_height", "latent_width"])


def constant(name: str, values: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values), name)


def unet(*nodes: onnx.NodeProto, constants: Any = (), output: Any = OUTPUT) -> onnx.ModelProto:
    """A U-Net of the tiny bundle's inputs that does something else."""
    graph = helper.make_graph(
        list(nodes),
        "hostile",
        [helper.make_tensor_value_info(*described) for described in INPUTS],
        [helper.make_tensor_value_info(*output)],
        [constant(name, values) for name, values in dict(constants).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def endless() -> onnx.ModelProto:
    """A loop of 2**62 rounds."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["x", "x"], ["y"])],
        "body",
        [value("k", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("x", TensorProto.FLOAT, None)],
        [value("go_on", TensorProto.BOOL, []), value("y", TensorProto.FLOAT, None)],
    )
    return unet(
        helper.make_node("Loop", ["rounds", "true", "sample"], ["out_sample"], body=body),
        constants={"rounds": np.int64(2**62), "true": np.bool_(True)},
    )


def huge() -> onnx.ModelProto:
    """65536 x 65536 numbers, made at run time: their size depends on an input."""
    return unet(
        helper.make_node("Shape", ["timestep"], ["batch"]),
        helper.make_node("Mul", ["batch", "side"], ["rows"]),
        helper.make_node("Concat", ["rows", "side"], ["shape"], axis=0),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        helper.make_node("Add", ["sample", "sum"], ["out_sample"]),
        constants={"side": np.array([65536])},
    )


def other_shape(*repeats: int) -> onnx.ModelProto:
    """The sample, repeated along its sides."""
    return unet(
        helper.make_node("Tile", ["sample", "repeats"], ["out_sample"]),
        constants={"repeats": np.array(repeats)},
        output=("out_sample", TensorProto.FLOAT, [None] * 4),
    )


def texts() -> onnx.ModelProto:
    """Texts where numbers belong."""
    return unet(
        helper.make_node("Cast", ["sample"], ["out_sample"], to=TensorProto.STRING),
        output=("out_sample", TensorProto.STRING, OUTPUT[2]),
    )


def custom() -> onnx.ModelProto:
    """An operator of a library that would have to be loaded."""
    model = unet(helper.make_node("Evil", ["sample"], ["out_sample"], domain="evil"))
    model.opset_import.append(helper.make_opsetid("evil", 1))
    return model


def outside() -> onnx.ModelProto:
    """Weights that lie in a file of the system."""
    model = unet(helper.make_node("Add", ["sample", "secret"], ["out_sample"]))
    secret = TensorProto(name="secret", data_type=TensorProto.UINT8, dims=[16], data_location=TensorProto.EXTERNAL)
    secret.external_data.add(key="location", value="/etc/passwd")
    model.graph.initializer.append(secret)
    return model


def put(source: Path, root: Path, part: str, data: bytes) -> Path:
    """A copy of a bundle with another file for a part, signed."""
    shutil.copytree(source, root)
    manifest = json.loads((root / "bundle.json").read_text(encoding="utf-8"))
    entry = manifest["text"][0] if part == "tokenizer" else manifest["parts"][part]["files"][0]
    entry = entry.get("file", entry)
    (root / entry["path"]).write_bytes(data)
    entry.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    (root / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    return root


Put = Callable[[onnx.ModelProto], Path]
