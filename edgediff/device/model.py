"""What the device loop needs of a U-Net."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Literal, Protocol

from .array import DeviceArray

Capture = Literal["never", "proven", "always"]  # whose work becomes a graph: nobody's, what was checked, everybody's


class Model(Protocol):
    """A model is a U-Net that can enqueue itself on a stream. Its conditions (texts, sizes) are its own business."""

    capture: Capture  # whether its work may be part of a graph; proven: where a graph of it gave what its calls give
    warm_runs: int  # calls that must run before one is captured, in which the engine lays out its memory

    @property
    def key(self) -> Hashable:
        """What a captured graph of it depends on besides the batch: addresses and shapes of its other inputs."""

    def enqueue(self, sample: DeviceArray, timestep: DeviceArray, output: DeviceArray, stream: int) -> None:
        """Enqueue one call that reads ``sample`` (N, C', h, w) and ``timestep`` (N,) and writes ``output``
        (N, C, h, w); the unconditional half first. Must not wait for the device.
        """
