"""Fields of a manifest, each of its type and within its bounds, or an error that names it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from ..errors import BundleError, choices, shown
from .bounds import FILE, MAX_FILES, MAX_NAME, MAX_SIDE, MAX_TENSORS, Bounds
from .manifest import File, Tensor
from .onnx_file.locations import is_relative

DTYPES = ("float32", "float16", "int64")
SHA256 = re.compile("[0-9a-f]{64}")
KINDS: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool, "float | None": float}

T = TypeVar("T")


def get(data: Any, key: str, kind: type[T], where: str = "", bounds: tuple[float, float] | None = None) -> T:
    """A field of an object; ``where`` is the object's place in the manifest, for messages."""
    label = f"{where}.{key}" if where else key
    if not isinstance(data, Mapping) or key not in data:
        raise BundleError(f"{label} is missing")
    value = data[key]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise BundleError(f"{label} is {shown(value)}; it must be of type {kind.__name__}")
    if bounds is not None and not bounds[0] <= value <= bounds[1]:  # type: ignore[operator]
        low, high = (f"{v:.15g}" for v in bounds)
        raise BundleError(f"{label} is {shown(value)}; it must be {low} .. {high}")
    return value


def items(data: Any, key: str, most: int, where: str = "") -> list[Any]:
    """A list of at most ``most`` entries."""
    found = get(data, key, list, where)
    if len(found) > most:
        raise BundleError(f"{where + '.' if where else ''}{key} has {len(found)} entries; it may have {most}")
    return found


def name_of(data: Any, key: str, where: str = "") -> str:
    """A text that is a name: not of any length."""
    text = get(data, key, str, where)
    if len(text) > MAX_NAME:
        label = f"{where}.{key}" if where else key
        raise BundleError(f"{label} has {len(text)} characters; it may have {MAX_NAME}")
    return text


def optional(data: Mapping[str, Any], key: str, kind: type[T], default: T) -> T:
    """A field that may be left out."""
    return get({key: default, **data}, key, kind)


def make(cls: type[T], data: Mapping[str, Any], where: str, bounds: Bounds) -> T:
    """A flat dataclass from a flat object: every given field typed, unknown ones ignored, absent ones defaulted."""
    values: dict[str, Any] = {}
    for f in fields(cls):  # type: ignore[arg-type]
        if f.name in data or f.default is MISSING:
            values[f.name] = get(data, f.name, KINDS[str(f.type)], where, bounds.get(f.name))
            if isinstance(values[f.name], str):
                name_of(data, f.name, where)
    return cls(**values)


def file_of(data: Any, hashed: bool) -> File:
    """A file's entry; one that is not ``hashed`` (another exporter's) has an empty checksum."""
    entry = data if isinstance(data, Mapping) else {}
    file = make(File, entry, "file", FILE)
    if not is_relative(file.path) or not file.path.isprintable():
        raise BundleError(
            f"file path {shown(file.path)} leaves the bundle; it must be relative, with forward slashes, and in "
            "letters that print"
        )
    if hashed and not SHA256.fullmatch(file.sha256):
        raise BundleError(f"file {file.path} has sha256 {shown(file.sha256)}; it must be 64 digits, 0-9 and a-f")
    return file


def files_of(data: Any, part: str, hashed: bool) -> tuple[File, ...]:
    """The files of a part, at least one."""
    files = tuple(file_of(f, hashed) for f in items(data, "files", MAX_FILES, part))
    if not files:
        raise BundleError(f"part {part} has no files")
    return files


def tensors_of(data: Any, key: str, part: str) -> tuple[Tensor, ...]:
    """The inputs or outputs of a part, each once."""
    tensors = tuple(_tensor(t) for t in items(data, key, MAX_TENSORS, part))
    names = [t.name for t in tensors]
    if again := [name for name in names if names.count(name) > 1]:
        raise BundleError(f"part {part} has {shown(again[0])} twice among its {key}")
    return tensors


def _tensor(data: Any) -> Tensor:
    name, dtype = name_of(data, "name", "tensor"), name_of(data, "dtype", "tensor")
    shape = items(data, "shape", 8, "tensor")
    if dtype not in DTYPES:
        raise BundleError(f"tensor {shown(name)} is of type {shown(dtype)}; choose from {choices(DTYPES)}")
    for side in shape:
        named = isinstance(side, str) and 0 < len(side) <= MAX_NAME
        if not named and not (type(side) is int and 1 <= side <= MAX_SIDE):
            raise BundleError(
                f"tensor shape {shown(shape)} holds something other than names and sizes, 1 .. {MAX_SIDE}"
            )
    return Tensor(name, dtype, tuple(shape))
