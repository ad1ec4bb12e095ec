"""A component's folder holds its weights in one file or in pieces, in full or in half precision, among other files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from edgediff.errors import BundleError

# What diffusers and transformers read; flax, onnx, non_ema and other programs' files may lie beside them.
NAME = re.compile(r"(diffusion_pytorch_model|pytorch_model|model)(\.fp16)?(-\d+-of-\d+)?\.safetensors$")
PICKLED = re.compile(r"(diffusion_pytorch_model|pytorch_model|model)(\.fp16)?(-\d+-of-\d+)?\.bin$")
DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


@dataclass(frozen=True)
class WeightFiles:
    """The files that the library reads, and the ``variant`` that it must be asked for."""

    paths: list[Path]
    variant: str | None

    def tensors(self) -> dict[str, tuple[tuple[int, ...], Path]]:
        """Read the shape and the file of every tensor, of the files' headers alone."""
        return {name: (shape, path) for path in self.paths for name, (shape, _) in _entries(path).items()}

    def dtypes(self) -> set[torch.dtype]:
        """List the types in which floats are stored."""
        return {kind for path in self.paths for kind in file_dtypes(path)}


def find_weights(folder: Path) -> WeightFiles:
    """Find the files of weights in a component's folder: .safetensors alone, full precision before half.

    Raises:
        BundleError: there are none; there are pickled ones, which are programs, and are not read.
    """
    if files := find_files(folder):
        return files
    if folder.is_dir() and (pickled := sorted(p.name for p in folder.iterdir() if PICKLED.match(p.name))):
        raise BundleError(
            f"{folder / pickled[0]} is pickled, and reading it may run what its author wrote; where you trust it, load "
            "the pipeline with diffusers and save it again with save_pretrained, which writes .safetensors"
        )
    raise BundleError(
        f"{folder.parent}: {folder.name} holds no weights (diffusion_pytorch_model.safetensors, or model.safetensors "
        "of a text encoder); save the whole pipeline with save_pretrained"
    )


def find_files(folder: Path) -> WeightFiles | None:
    """Find the same files; None where there are none."""
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    found = [m for name in names if (m := NAME.match(name))]
    for variant in ("", ".fp16"):
        fitting = [m for m in found if (m[2] or "") == variant]
        whole = [m for m in fitting if not m[3]]
        if fitting:
            paths = [folder / m[0] for m in whole] or _pieces(folder, fitting[0], [m[0] for m in fitting])
            return WeightFiles(paths, variant[1:] or None)
    return None


def _pieces(folder: Path, first: re.Match[str], names: list[str]) -> list[Path]:
    """List the pieces that the index names; those of another save may lie beside them. Without one, all of them."""
    index = folder / f"{first[1]}.safetensors.index{first[2] or ''}.json"
    if index.is_file():
        try:
            names = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise BundleError(f"{index} cannot be read as an index of weights: {error!r}") from error
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise BundleError(f"{index} names {missing[0]}, which is not there; save the component again")
    return [folder / name for name in names]


def file_dtypes(path: Path) -> set[torch.dtype]:
    """List the types in which a file stores floats."""
    return {kind for _, kind in _entries(path).values() if kind.is_floating_point}


def _entries(path: Path) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
    """Read the shape and type of every tensor in a file. Raises ``BundleError``."""
    try:
        with safe_open(path, "pt") as f:
            slices = {name: f.get_slice(name) for name in f.keys()}  # noqa: SIM118
            return {name: (tuple(s.get_shape()), DTYPES.get(s.get_dtype(), torch.int64)) for name, s in slices.items()}
    except Exception as error:  # the library raises its own
        raise BundleError(f"{path} cannot be read: {error}") from error
