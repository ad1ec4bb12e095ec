"""The PTX of the kernels that ship, from whichever compilers are at hand. Neither needs a GPU or a driver."""

from __future__ import annotations

import functools
import importlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parents[3] / "cpp_ext" / "cuda"
OPTIONS = ("--std=c++17", "--fmad=false")
OLDEST = "compute_75"  # whose PTX serves every newer GPU


class NoCompiler(Exception):
    """A compiler that is not here, with the reason."""


@functools.cache
def nvrtc(folder: Path = SOURCES) -> str:
    """The PTX that NVRTC makes.

    Raises:
        NoCompiler: cuda-bindings or NVRTC is not installed.
        RuntimeError: the sources do not compile.
    """
    try:
        library: Any = importlib.import_module("cuda.bindings.nvrtc")
        library.nvrtcVersion()
    except Exception as error:  # an import's, or that of a library that cannot be found, by several names
        raise NoCompiler(f"NVRTC cannot be used: {error}") from error
    headers = sorted(folder.glob("*.h"))
    program = _done(
        library.nvrtcCreateProgram(
            (folder / "kernels.cu").read_bytes(),
            b"kernels.cu",
            len(headers),
            [h.read_bytes() for h in headers],
            [h.name.encode() for h in headers],
        )
    )
    options = [f"--gpu-architecture={OLDEST}".encode(), *(o.encode() for o in OPTIONS)]
    (error,) = library.nvrtcCompileProgram(program, len(options), options)
    if error:
        log = b" " * _done(library.nvrtcGetProgramLogSize(program))
        library.nvrtcGetProgramLog(program, log)
        raise RuntimeError(f"{error.name}: {log.decode()}")
    text = b" " * _done(library.nvrtcGetPTXSize(program))
    library.nvrtcGetPTX(program, text)
    return text.rstrip(b"\0").decode()


@functools.cache
def nvcc(folder: Path = SOURCES) -> str:
    """The PTX that nvcc makes. Errors as ``nvrtc``."""
    if shutil.which("nvcc") is None:
        raise NoCompiler("there is no nvcc")
    with tempfile.TemporaryDirectory() as made:
        out = Path(made) / "kernels.ptx"
        command = ["nvcc", "-ptx", f"-arch={OLDEST}", *OPTIONS, "-o", str(out), str(folder / "kernels.cu")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr or done.stdout)
        return out.read_text(encoding="utf-8")


COMPILERS = {"nvrtc": nvrtc, "nvcc": nvcc}  # the cheaper first


def _done(answer: tuple[Any, Any]) -> Any:
    error, value = answer
    if error:
        raise RuntimeError(f"NVRTC: {error.name}")
    return value
