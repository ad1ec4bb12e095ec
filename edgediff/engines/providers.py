"""Execution providers are what ONNX Runtime runs by: which there are, on whose stream, and their silence.

Two things that edgediff does around the opening of a session are of the whole process, since ONNX Runtime has no
smaller place for them. A lock of this module keeps threads from undoing each other's.

- Providers complain to ONNX Runtime's default logger, whatever a session's own level says. Its level is raised while a
  session with a provider opens, and is then the default again: ONNX Runtime does not tell what it was before.
- ``preload_dlls`` prints what it does not find. The name ``print`` in that module, and in no other, stands for nothing
  meanwhile.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..device.base import Device
from ..errors import ArgumentError, EngineError, choices, printable, shown
from .base import Provider
from .cuda_libraries import load_missing

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# Those that can run on a stream of ours, with the same options.
STREAMED = (CUDA, "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")
WARNINGS, SILENCE = 2, 4  # levels of ONNX Runtime's loggers; the default logger begins with the first
LONGEST = 1000  # characters of a message of ONNX Runtime that are repeated

_process = threading.Lock()  # held while what is the whole process's is changed
_opening = 0  # sessions that want silence


def check_providers(providers: Any) -> None:
    """Refuse what is no list of providers, each a name or (name, options), by ``ArgumentError``."""
    if providers is None:
        return
    if isinstance(providers, str) or not isinstance(providers, Sequence) or not providers:
        raise ArgumentError(f"providers is {shown(providers)}; it must be a list of names, or of (name, options)")
    for one in providers:
        pair = isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str) and isinstance(one[1], Mapping)
        if not isinstance(one, str) and not pair:
            raise ArgumentError(f"a provider is {shown(one)}; it must be a name, or (name, options)")


def name_of(provider: Provider) -> str:
    """Return a provider's name."""
    return provider if isinstance(provider, str) else provider[0]


def options_of(provider: Provider) -> Mapping[str, Any]:
    """Return a provider's options."""
    return {} if isinstance(provider, str) else provider[1]


def on_gpu(device: Device | None) -> bool:
    """Tell whether a device is a real one: the host's stand-in has a negative number."""
    return device is not None and device.ordinal >= 0


def streams(device: Device | None, providers: Sequence[Provider] | None) -> bool:
    """Tell whether the first provider, or the device's own when None, works on the device's stream."""
    return device is not None and (providers is None or name_of(providers[0]) in STREAMED)


def on_stream(provider: Provider, device: Device | None) -> Provider:
    """Return the provider on the device's stream, so that calls are ordered with the loop's other work."""
    if device is None or not on_gpu(device) or name_of(provider) not in STREAMED:
        return provider
    stream = {"device_id": device.ordinal, "has_user_compute_stream": 1, "user_compute_stream": device.stream}
    # By itself the arena doubles, and keeps what it took.
    first = {"arena_extend_strategy": "kSameAsRequested"} if name_of(provider) == CUDA else {}
    return name_of(provider), {**first, **options_of(provider), **{key: str(value) for key, value in stream.items()}}


def session_providers(
    ort: Any, part: str, device: Device | None, providers: Sequence[Provider] | None
) -> list[Provider]:
    """Return the providers that a part's session asks for, in their order; the CPU's comes last by itself.

    Raises:
        EngineError: ONNX Runtime was built without one of them.
    """
    asked = [CUDA] if providers is None and on_gpu(device) else list(providers or ())
    available = ort.get_available_providers()
    for provider in map(name_of, asked):
        if provider not in available:
            hint = "; install onnxruntime-gpu in place of onnxruntime" if "CUDA" in provider else ""
            raise EngineError(
                f"{part}: ONNX Runtime {ort.__version__} has no {provider}; choose from {choices(available)}{hint}"
            )
    if any(name_of(provider) in STREAMED for provider in asked):
        preload(ort)
    asked = [on_stream(provider, device) for provider in asked]
    return asked if CPU in map(name_of, asked) else [*asked, CPU]


def preload(ort: Any) -> None:
    """Load CUDA's libraries from pip's packages, where they are not the system's, without a word on the screen: those
    that are missing come again, as an error, from whatever needs them.
    """
    if hasattr(ort, "preload_dlls"):
        with _process:
            ort.print = lambda *_, **__: None
            try:
                ort.preload_dlls()
            finally:
                del ort.print
            load_missing(ort)


@contextmanager
def silence(ort: Any) -> Iterator[None]:
    """ONNX Runtime's default logger is silent until the last of those who asked for it is done."""
    global _opening
    with _process:
        _opening += 1
        ort.set_default_logger_severity(SILENCE)
    try:
        yield
    finally:
        with _process:
            _opening -= 1
            if _opening == 0:
                ort.set_default_logger_severity(WARNINGS)


def why_no_library(ort: Any, provider: str) -> str:
    """Tell what the loader says of a provider's library that ONNX Runtime could not load, or an empty string."""
    stem = provider.removesuffix("ExecutionProvider").lower()
    library = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{stem}.so"
    try:
        if library.is_file():
            ctypes.CDLL(str(library))  # one that is loaded already is not loaded again
    except OSError as error:
        return line(error)
    return ""


def line(error: Exception) -> str:
    """Return an error's message on one line, its beginning where it is long: a graph's names are in it."""
    text = printable(" ".join(str(error).split()))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
