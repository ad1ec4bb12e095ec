"""The CUDA kernels' machine code, from the first place that has it.

- edgediff-kernels, where it was built beside nvcc, holds code for many GPUs (a "fatbin").
- NVRTC, NVIDIA's compiler as a library, makes it for the GPU at hand. That takes a second or two, once: the code is
  kept in edgediff's cache folder.

Neither nvcc nor a C++ compiler is needed here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ...cache_folder import open_to_all
from ...errors import EngineError, printable
from ...files import read_regular
from ...whole import replacing
from ..driver import probe
from .nvrtc import OPTIONS, compile_kernels, nvrtc_architectures, nvrtc_version
from .source import kernel_source

Version = tuple[int, int]
LARGEST = 64 << 20  # bytes of machine code


@dataclass(frozen=True)
class KernelCode:
    """Machine code of the kernels: its kind (fatbin, cubin or ptx, as cuda-core names them), and whence it is."""

    kind: str
    data: bytes
    origin: str


def kernel_codes(capability: Version, driver: Version, cache_folder: Path | None) -> Iterator[KernelCode | EngineError]:
    """Code for a GPU, the best first, made when it is asked for; an error in the place of what cannot be had.

    Args:
        capability: the GPU's compute capability.
        driver: the newest CUDA that the driver runs.
        cache_folder: where compiled code is kept; None keeps none.
    """
    finds: tuple[Callable[[], KernelCode], ...] = (
        lambda: _prebuilt(driver),
        lambda: _compiled(capability, driver, cache_folder),
    )
    for find in finds:
        try:
            yield find()
        except EngineError as error:
            yield error


def why_no_code(ordinal: int = 0) -> str:
    """Why no kernels can be had for this GPU, or an empty string. Loads the compiler, and compiles nothing."""
    try:
        gpu = probe(ordinal)
    except EngineError as error:
        return str(error)
    reasons = []
    finds: tuple[Callable[[], object], ...] = (
        lambda: _prebuilt_facts(gpu.driver),
        lambda: _target(gpu.capability, gpu.driver),
    )
    for find in finds:
        try:
            find()
            return ""
        except EngineError as error:
            reasons.append(str(error))
    return f"no CUDA kernels: {'; '.join(reversed(reasons))}"


def describe_code(ordinal: int = 0) -> str:
    """One line for people: where the CUDA kernels of this GPU would come from, or why there are none."""
    if why := why_no_code(ordinal):
        return why
    try:
        facts = _prebuilt_facts(probe(ordinal).driver)
        return f"compiled beforehand by CUDA {facts['cuda']} for {facts['architectures']}"
    except EngineError as error:
        version = ".".join(map(str, nvrtc_version()))
        return f"compiled at first use by NVRTC {version} ({error})"


def _prebuilt(driver: Version) -> KernelCode:
    facts = _prebuilt_facts(driver)
    path = Path(facts["path"])
    try:
        data = read_regular(path, LARGEST)
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error}") from error
    return KernelCode("fatbin", data, f"edgediff-kernels, by CUDA {facts['cuda']}")


def _prebuilt_facts(driver: Version) -> dict[str, str]:
    """What edgediff-kernels says of its fatbin, which this driver can run: ``path``, ``cuda``, ``architectures``."""
    spec = find_spec("edgediff_kernels")
    if spec is None or not spec.submodule_search_locations:
        raise EngineError("edgediff-kernels, which may hold them, is not installed")
    folder = Path(next(iter(spec.submodule_search_locations)))
    try:
        facts = json.loads(read_regular(folder / "kernels.json", 1 << 16))
        stamp, cuda, architectures = (str(facts[key]) for key in ("sources", "cuda", "architectures"))
        major = int(cuda.split(".")[0])
    except FileNotFoundError:
        raise EngineError("edgediff-kernels was built without CUDA code") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise EngineError(f"edgediff-kernels has a damaged kernels.json ({printable(str(error))})") from error
    if stamp != kernel_source().stamp:
        raise EngineError("edgediff-kernels holds those of other sources; install it again (pip install ./cpp_ext)")
    if major > driver[0]:
        raise EngineError(f"edgediff-kernels holds those of CUDA {cuda}; the driver runs CUDA {driver[0]}.{driver[1]}")
    return {"path": str(folder / "kernels.fatbin"), "cuda": cuda, "architectures": architectures}


def _compiled(capability: Version, driver: Version, cache_folder: Path | None) -> KernelCode:
    source, target = kernel_source(), _target(capability, driver)
    kind = "cubin" if target.startswith("sm_") else "ptx"
    version = ".".join(map(str, nvrtc_version()))
    origin = f"NVRTC {version} for {target}"
    named = json.dumps([source.stamp, target, version, OPTIONS])
    kept = None if cache_folder is None else cache_folder / f"kernels-{hashlib.sha256(named.encode()).hexdigest()[:32]}"
    if kept is not None and _open_to_all(kept):
        kept = None
    if kept is not None:
        with suppress(OSError):
            return KernelCode(kind, _checked(read_regular(kept, LARGEST)), origin)
    data = compile_kernels(target)
    if kept is not None:
        with suppress(OSError):  # it is compiled again next time
            kept.parent.mkdir(parents=True, exist_ok=True)
            with replacing(kept) as f:
                f.write(hashlib.sha256(data).digest() + data)
    return KernelCode(kind, data, origin)


def _open_to_all(kept: Path) -> bool:
    """Whether a kept file may be a stranger's, as the engine cache has it: every user can write it, or its folder."""
    for path in (kept, kept.parent):
        with suppress(OSError):  # it is not there
            if open_to_all(path):
                return True
    return False


def _checked(data: bytes) -> bytes:
    """The code in a kept file, which begins with its hash; ``OSError`` where that is another's."""
    digest, code = data[:32], data[32:]
    if hashlib.sha256(code).digest() != digest:
        raise OSError("damaged")
    return code


def _target(capability: Version, driver: Version) -> str:
    """What NVRTC shall compile for: the GPU's own machine code, or the newest PTX that an unknown GPU can run."""
    version = nvrtc_version()
    if version[0] > driver[0]:
        ours, theirs = (".".join(map(str, one)) for one in (version, driver))
        raise EngineError(
            f"NVRTC is of CUDA {ours}, and the driver, of CUDA {theirs}, cannot run what it makes; update the driver, "
            f"or run: pip install nvidia-cuda-nvrtc-cu{driver[0]}"
        )
    own, known = 10 * capability[0] + capability[1], nvrtc_architectures()
    if own in known:
        return f"sm_{own}"
    older = [one for one in known if one < own]
    if not older:
        raise EngineError(
            f"NVRTC {version[0]}.{version[1]} compiles for compute capability {known[0] / 10} and newer; the GPU has "
            f"{capability[0]}.{capability[1]}"
        )
    return f"compute_{older[-1]}"
