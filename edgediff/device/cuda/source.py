"""The CUDA kernels come as source, in the package edgediff_cuda (cpp_ext/cuda in the repository)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from ...errors import EngineError
from ...sampling.kernel_layout import HEADER, ROW, STATE

MAIN = "kernels.cu"
# As Python lays the structures out: the sources refuse to compile otherwise.
MACROS = [
    ("EDGEDIFF_STATE_BYTES", str(STATE.itemsize)),
    ("EDGEDIFF_ROW_BYTES", str(ROW.itemsize)),
    ("EDGEDIFF_HEADER_BYTES", str(HEADER.itemsize)),
]


@dataclass(frozen=True)
class KernelSource:
    """The source of the kernels: where it lies, its main file, and a stamp that tells it from others."""

    folder: Path
    text: str
    stamp: str


@cache
def kernel_source() -> KernelSource:
    """The source, read once a process.

    Raises:
        EngineError: the package is not installed, or a file cannot be read.
    """
    spec = find_spec("edgediff_cuda")
    if spec is None or not spec.submodule_search_locations:
        raise EngineError("the CUDA kernels' sources (package edgediff_cuda) are missing; install edgediff again")
    folder = Path(next(iter(spec.submodule_search_locations)))
    try:
        # Not an editor's: Emacs' lock of a file is a link beside it that leads nowhere.
        paths = [path for path in folder.glob("[!.]*") if path.suffix in (".cu", ".h")]
        files = {path.name: path.read_bytes() for path in paths}
    except OSError as error:
        raise EngineError(f"the CUDA kernels' sources in {folder} cannot be read: {error}") from error
    if MAIN not in files:
        raise EngineError(f"the CUDA kernels' sources in {folder} lack {MAIN}; install edgediff again")
    return KernelSource(folder, files[MAIN].decode(), stamp_of(files))


def stamp_of(files: dict[str, bytes]) -> str:
    """A stamp of files by name, as cpp_ext/fatbin.cmake makes it."""
    lines = "".join(f"{name} {hashlib.sha256(data).hexdigest()}\n" for name, data in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
