"""Weights outside an ONNX file lie where a bundle lets them: in the graph's own folder, whole, and listed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ...confined import confined
from ...errors import BundleError, shown
from .header import GraphHeader
from .walk import read_header

NEVER = set("\\:\0")  # of a path inside a folder: other systems' folders and drives
ADDRESS = "*"  # begins a name that ONNX Runtime takes for an address in memory
COMPILED = ("com.microsoft", "EPContext")  # an operator that opens a file of its own, of compiled code
FLATBUFFER = ".ort"  # files of this name are read in another format, which is not looked into


def is_relative(name: str) -> bool:
    """Whether a name can be a path inside a folder, by its letters alone."""
    pure = PurePosixPath(name)
    return bool(pure.parts) and not (pure.is_absolute() or ".." in pure.parts or NEVER & set(name))


def check_graph(root: Path, path: Path) -> tuple[GraphHeader, dict[str, int]]:
    """The header of the ONNX file at ``path``, and the files of weights that it names: paths from ``root``, with
    slashes, and how many bytes each must have.

    Raises:
        BundleError, BundleNotFoundError: it is no ONNX file; weights outside the graph's folder or outside ``root``; an
            operator that opens files by itself.
    """
    confined(root, path)
    if path.suffix.lower() == FLATBUFFER:
        raise BundleError(f"{path} is in ONNX Runtime's own format, of which nothing is known before it is opened")
    header = read_header(path)
    if COMPILED in header.operators:
        raise BundleError(f"{path} holds {COMPILED[1]}, which opens a file of compiled code; graphs hold operators")
    return header, dict(_located(root, path, header))


def _located(root: Path, path: Path, header: GraphHeader) -> Iterator[tuple[str, int]]:
    for name, size in sorted(header.external.items()):
        if not is_relative(name) or ADDRESS in name:
            raise BundleError(f"{path} keeps weights in {shown(name)}, which leaves its folder")
        place = path.parent / name
        confined(root, place)
        yield place.relative_to(root).as_posix(), size
