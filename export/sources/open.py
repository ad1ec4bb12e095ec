"""A checkpoint opens as the source that it is: a folder, or a single file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgediff.errors import ArgumentError

from .base import Source
from .folder import PIPELINES, Folder
from .single_file import SingleFile
from .stand_ins import check_files


def open_source(
    path: Path, config: Path | None = None, prediction_type: str | None = None, exchanged: Sequence[str] = ()
) -> Source:
    """Open the checkpoint at ``path``, a folder or a file; no weight is loaded. Raises as its class does.

    A single file may lack the components that are ``exchanged``.
    """
    if path.is_dir() or not (path.suffix or path.is_file()):
        for name, value in (("config", config), ("prediction_type", prediction_type)):
            if value is not None:
                raise ArgumentError(f"{name} is {str(value)!r}; it is for single files, and {path} is a folder")
        folder = Folder(path)
        check_files(path, [name for name in PIPELINES[folder.pipeline] if folder.has(name)])
        return folder
    return SingleFile(path, config, prediction_type, exchanged)
