"""Which engine would run each part here, and why the others would not. Opens none of them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from ..bundle.manifest import Bundle
from ..device.cuda import why_no_device
from ..errors import EdgediffError, EngineError
from .onnxruntime import CUDA, INSTALL, import_onnxruntime, why_not
from .tensorrt.cache import NO_PLAN, EngineCache, source
from .tensorrt.installed import INSTALL as INSTALL_TENSORRT
from .tensorrt.installed import installed, this_platform, why_no_tensorrt

CUDA_INSTALL = "install onnxruntime-gpu in place of onnxruntime"


@dataclass(frozen=True)
class Availability:
    """One engine's for one part on one device."""

    device: str
    engine: str
    detail: str  # what would run
    reasons: tuple[str, ...]  # why it would not


def survey(bundle: Bundle, part: str, cache: EngineCache, ordinal: int = 0) -> list[Availability]:
    """The engines of a part in the order in which they are tried, first those of the GPU."""
    device, file = why_no_device(ordinal), _why_no_file(bundle, part)
    return [
        Availability("cuda", "TensorRT", *_plan(bundle, part, cache, ordinal)),
        Availability("cuda", "ONNX Runtime", _version(), _all(device, _why_no_cuda(), *file)),
        Availability("cpu", "ONNX Runtime", _version(), file),
    ]


def _plan(bundle: Bundle, part: str, cache: EngineCache, ordinal: int) -> tuple[str, tuple[str, ...]]:
    reason, no_source, found = why_no_tensorrt(ordinal), "", None
    try:
        found = source(bundle, part)
    except EdgediffError as error:
        no_source = str(error).removeprefix(f"{part}: ")
    if found is None or reason or (reason := why_no_device(ordinal)):
        return "", _all(reason, "" if installed() else INSTALL_TENSORRT, no_source)
    plans, reasons = cache.find(found, part, this_platform(ordinal))
    if not plans:
        return "", tuple(reasons) or (NO_PLAN,)
    return f"{'.'.join(map(str, this_platform(ordinal).tensorrt))}, {plans[0].path}", ()


def _all(*reasons: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(filter(None, reasons)))


def _why_no_file(bundle: Bundle, part: str) -> tuple[str, ...]:
    reasons = [why_not(file) for file in bundle.parts[part].files]
    return () if "" in reasons else _all(*reasons)


def _version() -> str:
    try:
        return str(import_onnxruntime().__version__)
    except EngineError:
        return ""


def _why_no_cuda() -> str:
    if importlib.util.find_spec("onnxruntime") is None:
        return INSTALL
    try:
        ort = import_onnxruntime()
    except EngineError as error:
        return str(error)
    return "" if CUDA in ort.get_available_providers() else f"{ort.__version__} has no {CUDA}; {CUDA_INSTALL}"
