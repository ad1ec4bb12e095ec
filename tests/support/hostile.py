"""Bundles whose graphs are not what their manifests say. It needs onnx, and no torch."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

FLOAT = TensorProto.FLOAT
TYPES = {"float32": FLOAT, "int64": TensorProto.INT64}
Shape = Sequence[int | str] | None


def forged(
    bundle: Path, out: Path, part: str, model: onnx.ModelProto, edit: Callable[[Any], None] | None = None
) -> Path:
    """Copy a bundle with another graph in a part's place, its size and checksum signed anew.

    Args:
        edit: changes the part's entry of the manifest.
    """
    shutil.copytree(bundle, out)
    manifest = json.loads((out / "bundle.json").read_text(encoding="utf-8"))
    entry = manifest["parts"][part]
    file = entry["files"][0]
    data = model.SerializeToString()
    (out / file["path"]).write_bytes(data)
    file |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if edit is not None:
        edit(entry)
    (out / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    return out


def inputs_of(bundle: Path, part: str) -> list[onnx.ValueInfoProto]:
    """A part's inputs, as its manifest lists them."""
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    tensors = manifest["parts"][part]["inputs"]
    return [helper.make_tensor_value_info(t["name"], TYPES[t["dtype"]], t["shape"]) for t in tensors]


def graph(
    inputs: Sequence[onnx.ValueInfoProto],
    nodes: Sequence[onnx.NodeProto],
    outputs: Sequence[onnx.ValueInfoProto],
    initializers: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    """A model of these nodes, of a version that every ONNX Runtime in range opens."""
    made = helper.make_graph(list(nodes), "forged", list(inputs), list(outputs), initializer=list(initializers))
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def same_as(name: str, source: str, kind: int = FLOAT, shape: Shape = None) -> tuple[Any, Any]:
    """An output ``name`` that is the input ``source`` in another type, and how it is declared."""
    return helper.make_node("Cast", [source], [name], to=kind), helper.make_tensor_value_info(name, kind, shape)
