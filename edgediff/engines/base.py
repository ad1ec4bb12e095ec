"""An engine is one call over named arrays, ``engine(**inputs) -> dict[str, np.ndarray]``. A backend opens engines."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from ..bundle.manifest import PLAIN, WEIGHTS, Bundle, File, Part, Tensor
from ..cache_folder import default_cache_folder
from ..device.array import DeviceArray
from ..device.base import Device
from ..device.model import Capture
from ..errors import ArgumentError, choices, shown

DEVICES = ("cpu", "cuda", "cuda:N")

Provider = str | tuple[str, Mapping[str, Any]]  # an execution provider of ONNX Runtime, by name or with its options
Shapes = Mapping[str, tuple[int, ...]]  # of inputs, by name


class Engine(Protocol):
    """An engine runs one part. Calls may come from several threads at once.

    One that does not take every shape of its part has a method ``refuses(shapes)`` besides; see ``refuses`` below.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]: ...


class StreamEngine(Engine, Protocol):
    """A stream engine can also enqueue itself on a device's stream."""

    capture: Capture  # whether its work may be part of a captured graph
    warm_runs: int  # calls that must run before

    @property
    def key(self) -> Hashable:
        """Tell what a captured graph of it depends on besides addresses and shapes."""

    def enqueue(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: int) -> None: ...


@dataclass(frozen=True)
class EngineOptions:
    """These options say how a pipeline wants its parts run; see ``edgediff.load``.

    Args:
        threads: CPU threads an engine may use; all physical cores when None.
        providers: execution providers of ONNX Runtime, which then runs every part.
        engine: the word of one backend, or auto; every backend may run a part when None.
        engine_cache: the folder of engine files that were built on this machine; the default one when None.
        release_parts: hold one part at a time.
        memory_limit: bytes that a call may be predicted to take; None for what is free.
        only: the one backend that may run a part; it was made for this pipeline.
        cuda_graphs: whether work on a GPU may be captured and launched as graphs.
    """

    threads: int | None = None
    providers: Sequence[Provider] | None = None
    engine: str | None = None
    engine_cache: Path | None = None
    release_parts: bool = False
    memory_limit: int | None = None
    only: Backend | None = None
    cuda_graphs: bool = True

    def cache_folder(self) -> Path:
        """Return the folder of engine files, for who wants one. Raises as ``default_cache_folder``."""
        return default_cache_folder() if self.engine_cache is None else self.engine_cache


class Backend(Protocol):
    """A backend opens engines of one kind. Its module names it ``BACKEND``, and ``choose.BACKENDS`` names the module.

    Importing that module loads nothing but NumPy and the standard library: what the backend needs is imported by its
    methods.
    """

    name: str  # as people read it
    word: str  # of load(engine=...)
    devices: tuple[str, ...]  # cpu, cuda: where it can run
    runs: tuple[str, ...]  # which files of a part: the words of their engines in a manifest

    def why_not(self, bundle: Bundle, part: str, options: EngineOptions, ordinal: int | None) -> tuple[str, ...]:
        """Tell every reason why it cannot run this part on this device, or nothing. Opens nothing.

        Args:
            ordinal: the number of a CUDA device; None is the CPU.
        """

    def describe(self, bundle: Bundle, part: str, options: EngineOptions, ordinal: int | None) -> str:
        """Tell what would run the part there, such as a version, where there is no reason why not."""

    def open(self, bundle: Bundle, part: str, options: EngineOptions, device: Device | None) -> Engine:
        """Return the part's engine on a device; the CPU when None.

        Raises:
            EngineError: it cannot run here. The message begins with the part's name and holds every reason.
            BundleError: a file is missing or damaged.
        """


def refuses(engine: Engine, shapes: Shapes | None) -> str:
    """Tell why an engine does not take inputs of these shapes; an empty string where it does, or they do not matter."""
    method = getattr(engine, "refuses", None)
    return "" if method is None or shapes is None else str(method(shapes))


def why_not_file(file: File, runs: Sequence[str]) -> str:
    """Tell why a backend that ``runs`` files of these engines passes one over, or an empty string."""
    if file.engine in runs:
        return ""
    if file.engine == WEIGHTS:
        return "holds weights of the file before it"
    if file.engine == PLAIN:
        return "a graph for building TensorRT engines, which fuse attention by themselves"
    return f"no backend for engine {file.engine!r}"


def first_file(part: Part, runs: Sequence[str], missing: str = "") -> tuple[File | None, list[str]]:
    """Return the first file of a part that a backend runs, in the manifest's order, and why those before it are not it.

    Args:
        missing: why the backend cannot run any file here.
    """
    reasons: list[str] = []
    for file in part.files:
        if not (reason := why_not_file(file, runs) or missing):
            return file, reasons
        reasons.append(f"{file.path}: {reason}")
    return None, list(dict.fromkeys(reasons))


def check_device(device: str) -> int | None:
    """Return the number of a CUDA device; None is the CPU."""
    match = re.fullmatch(r"cpu|cuda(?::([0-9]{1,3}))?", device) if isinstance(device, str) else None
    if match is None:
        raise ArgumentError(f"no device {shown(device)}; choose from {choices(DEVICES)}")
    return None if device == "cpu" else int(match[1] or 0)
