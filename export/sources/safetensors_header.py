"""A .safetensors file is read by its header: names and shapes, then single tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from edgediff.bundle.hints import not_here
from edgediff.errors import BundleError, BundleNotFoundError
from edgediff.looks import not_safetensors

Shapes = Mapping[str, tuple[int, ...]]


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Read names and shapes of a safetensors file's tensors, and its metadata; no tensor is read.

    Raises:
        BundleNotFoundError: no such file.
        BundleError: another format, or a file that was cut.
    """
    if not path.is_file():
        raise BundleNotFoundError(f"no checkpoint at {path}{not_here(path)}")
    try:
        with safe_open(path, "pt") as f:
            return {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}, dict(f.metadata() or {})  # noqa: SIM118
    except Exception as error:  # the library raises its own
        raise BundleError(not_safetensors(path, error)) from error


def hollow_tensors(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Make tensors of these shapes without data."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def read_tensors(path: Path, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Read those tensors; floats in float32, each widened before the next is read."""
    with safe_open(path, "pt") as f:
        return {name: t.float() if (t := f.get_tensor(name)).is_floating_point() else t for name in names}


def map_tensors(path: Path, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Map those tensors, in the file's own types; nothing is read."""
    with safe_open(path, "pt") as f:
        return {name: f.get_tensor(name) for name in names}
