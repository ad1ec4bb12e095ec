"""The PTX of the kernels that ship, from whichever compilers are at hand. Neither needs a GPU or a driver."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

from edgediff.device.cuda.nvrtc import OPTIONS, compile_kernels, nvrtc_version
from edgediff.device.cuda.source import MAIN, kernel_source
from edgediff.errors import EngineError

from .execution import Program
from .parsing import parse

TARGET = "compute_75"  # whose PTX serves every newer GPU


class NoCompiler(Exception):
    """A compiler that is not here, with the reason."""


def nvrtc() -> str:
    """The PTX that NVRTC makes, as edgediff asks it for a GPU that NVRTC does not know.

    Raises:
        NoCompiler: cuda-bindings or NVRTC is not installed.
        EngineError: the sources do not compile.
    """
    try:
        nvrtc_version()
    except EngineError as error:
        raise NoCompiler(str(error)) from error
    return compile_kernels(TARGET).rstrip(b"\0").decode()


def nvcc() -> str:
    """The PTX that nvcc makes, with the same options.

    Raises:
        NoCompiler: there is none.
        RuntimeError: the sources do not compile.
    """
    if shutil.which("nvcc") is None:
        raise NoCompiler("there is no nvcc")
    with tempfile.TemporaryDirectory() as made:
        out = Path(made) / "kernels.ptx"
        command = ["nvcc", "-ptx", f"-arch={TARGET}", *OPTIONS, "-o", str(out), str(kernel_source().folder / MAIN)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr or done.stdout)
        return out.read_text(encoding="utf-8")


COMPILERS = {"nvrtc": nvrtc, "nvcc": nvcc}  # the cheaper first


@functools.cache
def compiled(compiler: str) -> str:
    """The PTX of one of ``COMPILERS``; raises as it does."""
    return COMPILERS[compiler]()


@functools.cache
def programs(compiler: str) -> dict[str, Program]:
    """The programs of that PTX, by entry."""
    return {name: Program(kernel) for name, kernel in parse(compiled(compiler)).items()}
