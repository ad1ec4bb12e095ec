"""Engines: one call over named arrays, ``engine(**inputs) -> dict[str, np.ndarray]``."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from ..bundle.manifest import Tensor
from ..device.base import DeviceArray
from ..errors import ArgumentError, choices

DEVICES = ("cpu", "cuda", "cuda:N")


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


def check_device(device: str) -> int | None:
    """The number of a CUDA device; None is the CPU."""
    found = re.fullmatch(r"cpu|cuda(?::([0-9]{1,3}))?", device) if isinstance(device, str) else None
    if found is None:
        raise ArgumentError(f"no device {device!r}; choose from {choices(DEVICES)}")
    return None if device == "cpu" else int(found[1] or 0)
