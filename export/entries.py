"""What a manifest says of files and tensors, and how it is written. Nothing here needs torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx

from edgediff.bundle.manifest import MANIFEST, PLAIN, WEIGHTS, sha256

from .onnx_graph.graph import WrittenFile
from .precision.precisions import PLAIN_NAME

ONNX_TYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64", onnx.TensorProto.FLOAT16: "float16"}


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest as JSON into a bundle's folder."""
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def graph_entries(files: list[WrittenFile], precision: str) -> list[dict[str, Any]]:
    """Describe the files of a part as the manifest lists them."""
    return [
        {
            "engine": _engine(f.path.name),
            "precision": precision,
            "path": f.path.name,
            "size": f.size,
            "sha256": f.sha256,
        }
        for f in files
    ]


def _engine(name: str) -> str:
    return WEIGHTS if name.endswith(".data") else PLAIN if name.endswith(PLAIN_NAME) else "onnx"


def file_entry(folder: Path, path: Path, engine: str, precision: str) -> dict[str, Any]:
    """Describe any other file as the manifest lists it."""
    return {
        "engine": engine,
        "precision": precision,
        "path": path.relative_to(folder).as_posix(),
        "size": path.stat().st_size,
        "sha256": sha256(path),
    }


def tensor_entry(value: onnx.ValueInfoProto, shape: list[int | str] | None = None) -> dict[str, Any]:
    """Describe an input or output of a graph as the manifest lists it; its shape is the graph's, or ``shape``."""
    kind = value.type.tensor_type
    if shape is None:
        shape = [d.dim_param or d.dim_value for d in kind.shape.dim]
    return {"name": value.name, "dtype": ONNX_TYPES[kind.elem_type], "shape": shape}
