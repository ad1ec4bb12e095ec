"""Engines: one call over named arrays, ``engine(**inputs) -> dict[str, np.ndarray]``. Backends import lazily."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import Bundle, File, Tensor
from ..device.base import Device, DeviceArray
from ..errors import ArgumentError, EngineError, choices

HASH_LIMIT = 64 << 20  # bytes; larger files are hashed by `edgediff verify`, not at every load
DEVICES = ("cpu", "cuda", "cuda:N")
WEIGHTS = "onnx-data"  # external weights, opened by the .onnx file beside which they lie
PLAIN = "onnx-plain"  # a graph without fused attention, for building engines
INSTALL = "no engine is installed; install edgediff with its cpu extra (edgediff[cpu]), or run: pip install onnxruntime"


Provider = str | tuple[str, Mapping[str, Any]]  # an execution provider of ONNX Runtime, by name or with its options


class Engine(Protocol):
    """A part that can run. Calls may come from several threads at once."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]: ...


class StreamEngine(Engine, Protocol):
    """An engine that can enqueue itself on a device's stream."""

    capturable: bool  # whether its work may be part of a captured graph

    @property
    def key(self) -> Hashable:
        """What a captured graph of it depends on besides addresses and shapes."""

    def enqueue(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: int) -> None: ...


def why_not(file: File) -> str:
    """Why this file cannot run here, or an empty string. Nothing is imported."""
    if file.engine == WEIGHTS:
        return "holds weights of the file before it"
    if file.engine == PLAIN:
        return "a graph for building TensorRT engines, which fuse attention by themselves"
    if file.engine != "onnx":
        return f"no backend for engine {file.engine!r}"
    if importlib.util.find_spec("onnxruntime") is None:
        return INSTALL
    return ""


def check_device(device: str) -> int | None:
    """The number of a CUDA device; None is the CPU."""
    found = re.fullmatch(r"cpu|cuda(?::([0-9]{1,3}))?", device) if isinstance(device, str) else None
    if found is None:
        raise ArgumentError(f"no device {device!r}; choose from {choices(DEVICES)}")
    return None if device == "cpu" else int(found[1] or 0)


def open_part(
    bundle: Bundle,
    name: str,
    threads: int | None = None,
    device: Device | None = None,
    providers: Sequence[Provider] | None = None,
) -> Engine:
    """Open the first runnable file of a part, on the CPU when ``device`` is None; ``providers`` are ONNX Runtime's.

    Raises:
        EngineError: no file can run here; the message holds the reason for each.
        BundleError: a file is missing or damaged.
    """
    reasons = []
    for file in bundle.parts[name].files:
        if reason := why_not(file):
            reasons.append(f"{file.path}: {reason}")
            continue
        path = bundle.path(name, file, hashed=file.size <= HASH_LIMIT)
        for data in bundle.parts[name].files:
            if data.engine == WEIGHTS and data.path.startswith(file.path):
                bundle.path(name, data, hashed=data.size <= HASH_LIMIT)
        from .onnxruntime import open_session

        return open_session(name, path, bundle.parts[name], threads, device, providers)
    raise EngineError(f"{name} cannot run here: {'; '.join(dict.fromkeys(reasons))}")


def require_finite(name: str, array: NDArray[Any]) -> None:
    """Raise ``EngineError`` naming the part whose output is not finite (in fp16 an overflow shows as a black image)."""
    if not finite(array):
        bad = int(array.size - np.count_nonzero(np.isfinite(array)))
        raise EngineError(f"{name} gave {bad} of {array.size} values that are not finite (NaN or infinity)")


def finite(array: NDArray[Any]) -> bool:
    """Whether all values are finite, in one pass without a temporary where they are."""
    flat = array.reshape(-1)
    with np.errstate(all="ignore"):  # squares may overflow; then the exact check decides
        return bool(np.isfinite(np.dot(flat, flat))) or bool(np.isfinite(flat).all())
