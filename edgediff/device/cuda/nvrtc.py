"""NVRTC, NVIDIA's compiler as a library, compiles the CUDA kernels. It needs neither a driver nor a GPU."""

from __future__ import annotations

import ctypes
import re
import sys
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...errors import EngineError
from .source import MACROS, MAIN, kernel_source

INSTALL = "pip install nvidia-cuda-nvrtc (nvidia-cuda-nvrtc-cu12 for a driver of CUDA 12)"
# Products and sums stay apart, as NumPy rounds them.
OPTIONS = ("-std=c++17", "-fmad=false", *(f"-D{name}={value}" for name, value in MACROS))


@cache
def nvrtc_version() -> tuple[int, int]:
    """The version of NVRTC.

    Raises:
        EngineError: there is none, or no cuda-bindings.
    """
    major, minor = _call("nvrtcVersion")
    return major, minor


@cache
def nvrtc_architectures() -> tuple[int, ...]:
    """The compute capabilities that NVRTC compiles for, ten times each, in order. Raises as ``nvrtc_version``."""
    return tuple(sorted(_call("nvrtcGetSupportedArchs")[0]))


def compile_kernels(target: str) -> bytes:
    """The kernels as machine code for ``sm_N``, or as PTX for ``compute_N``.

    Raises:
        EngineError: there is no NVRTC, or it refuses the source or the target.
    """
    source = kernel_source()
    (program,) = _call("nvrtcCreateProgram", source.text.encode(), MAIN.encode(), 0, [], [])
    options = [f"-arch={target}", f"-I{source.folder}", *OPTIONS]
    try:
        _call("nvrtcCompileProgram", program, len(options), [option.encode() for option in options])
        kind = "CUBIN" if target.startswith("sm_") else "PTX"
        data = bytes(_call(f"nvrtcGet{kind}Size", program)[0])
        _call(f"nvrtcGet{kind}", program, data)
        return data
    except EngineError as error:
        log = bytes(_call("nvrtcGetProgramLogSize", program)[0])
        _call("nvrtcGetProgramLog", program, log)
        said = " ".join(log.decode(errors="replace").strip("\0").split())
        raise EngineError(f"NVRTC cannot compile the kernels for {target}: {said or error}") from error
    finally:
        _call("nvrtcDestroyProgram", program)


def _call(function: str, *args: Any) -> tuple[Any, ...]:
    """What a function of NVRTC gives."""
    _load()
    try:
        from cuda.bindings import nvrtc

        code, *found = getattr(nvrtc, function)(*args)
    except ImportError as error:
        raise EngineError(f"cuda-bindings cannot be imported ({error}); run: pip install cuda-bindings") from error
    except Exception as error:  # cuda-pathfinder's, where there is no library
        said = " ".join(str(error).split())
        raise EngineError(f"NVRTC cannot be loaded ({said[:300]}); run: {INSTALL}") from error
    if code != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise EngineError(f"{function} gave {code.name}")
    return tuple(found)


@cache
def _load() -> None:
    """Load NVRTC from pip's packages wherever they lie on sys.path: cuda-bindings looks in site-packages alone."""
    for path in _libraries():
        with suppress(OSError):
            ctypes.CDLL(str(path))
            return


def _libraries() -> list[Path]:
    """NVRTC's files in pip's packages. Those of cuda-bindings' own CUDA come first: where the driver is of CUDA 12, so
    are they, and a newer NVRTC beside them makes what the driver cannot run.
    """
    own = ""
    with suppress(ImportError):
        from cuda.bindings import __version__ as version

        own = version.split(".")[0]
    spec = find_spec("nvidia")
    pattern = "**/nvrtc64_*.dll" if sys.platform == "win32" else "**/lib/libnvrtc.so.*"
    folders = () if spec is None else spec.submodule_search_locations or ()
    found = [path for folder in folders for path in sorted(Path(folder).glob(pattern))]
    named = re.compile(rf"(nvrtc64_|\.so\.){own}")
    return sorted(found, key=lambda path: not named.search(path.name))
