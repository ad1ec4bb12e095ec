"""The U-Net of a device loop, with its conditions in device memory."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32
from ..bundle.manifest import Tensor
from ..device.array import DeviceArray
from ..device.base import Device
from ..engines.base import StreamEngine

ALIGNMENT = 256  # TensorRT asks it of every tensor's address

Shapes = tuple[tuple[str, tuple[int, ...]], ...]  # of one half of each condition, by name


@dataclass(frozen=True)
class Place:
    """A place is where conditions of some shapes lie, in one block of device memory.

    Each condition has both its halves, the unconditional one first, as a guided batch reads them. The conditional half
    begins there at an address of its own, which is aligned too where the half's size is; where it is not, an aligned
    copy of it follows.

    Attributes:
        address, nbytes: of the block.
        guided, unguided: the arrays of a call with guidance (2*B, ...), and without (B, ...).
    """

    address: int
    nbytes: int
    guided: Mapping[str, DeviceArray]
    unguided: Mapping[str, DeviceArray]

    def packed(self, inputs: Mapping[str, Float32]) -> NDArray[np.uint8]:
        """The block's bytes. An array of ``inputs`` has both halves, or the conditional one alone."""
        out = np.zeros(self.nbytes, np.uint8)
        for name, values in inputs.items():
            whole, half = self.guided[name], self.unguided[name]
            at = whole.address - self.address
            both = out[at : at + whole.nbytes].view(whole.dtype).reshape(whole.shape)
            both[-len(values) :] = values
            if len(values) < len(both):
                both[: len(values)] = values
            alone = half.address - self.address
            if alone != at + half.nbytes:
                out[alone : alone + half.nbytes] = out[at + half.nbytes : at + whole.nbytes]
        return out


def lay_out(device: Device, shapes: Shapes, types: Mapping[str, str]) -> Place:
    """Allocate a place for conditions whose halves have these shapes. Raises ``EngineError``: no memory."""
    offsets: dict[str, tuple[int, int]] = {}
    end = 0
    for name, shape in shapes:
        nbytes = DeviceArray(0, shape, types[name]).nbytes
        if nbytes % ALIGNMENT:
            alone = end + _aligned(2 * nbytes)
            offsets[name] = end, alone
            end = alone + _aligned(nbytes)
        else:
            offsets[name] = end, end + nbytes
            end += 2 * nbytes
    address = device.allocate(end) if end else 0
    guided, unguided = {}, {}
    for name, shape in shapes:
        both, alone = offsets[name]
        guided[name] = DeviceArray(address + both, (2 * shape[0], *shape[1:]), types[name])
        unguided[name] = DeviceArray(address + alone, shape, types[name])
    return Place(address, end, guided, unguided)


def _aligned(nbytes: int) -> int:
    return math.ceil(nbytes / ALIGNMENT) * ALIGNMENT


class ConditionedUnet:
    """This U-Net keeps its conditions in device memory. Every address that it gives is a multiple of 256.

    Conditions of one shape keep their place, so that a captured graph serves the next request.
    """

    def __init__(self, device: Device, engine: StreamEngine, inputs: Sequence[Tensor], images: int) -> None:
        self._device, self._engine, self._images = device, engine, images
        self._types = {t.name: t.dtype for t in inputs}
        self._places: dict[Shapes, Place] = {}
        self._now = Place(0, 0, {}, {})
        self.capture, self.warm_runs = engine.capture, engine.warm_runs

    @property
    def key(self) -> Hashable:
        """The engine's key, and the place of the conditions, which is theirs alone while the U-Net lives."""
        return self._engine.key, self._now.address

    def set(self, inputs: Mapping[str, Float32]) -> None:
        """Take the conditions of every image: (2*B, ...) each, or (B, ...) without guidance, where the other half is
        not read. Copies them to the device, at once.
        """
        shapes = tuple(sorted((name, (self._images, *values.shape[1:])) for name, values in inputs.items()))
        if shapes not in self._places:
            self._places[shapes] = lay_out(self._device, shapes, self._types)
        self._now = self._places[shapes]
        if self._now.nbytes:
            self._device.upload(self._now.address, self._now.packed(inputs))

    def enqueue(self, sample: DeviceArray, timestep: DeviceArray, output: DeviceArray, stream: int) -> None:
        conditions = self._now.guided if sample.shape[0] > self._images else self._now.unguided
        self._engine.enqueue({"sample": sample, "timestep": timestep, **conditions}, {"out_sample": output}, stream)

    def close(self) -> None:
        """Give the memory back."""
        while self._places:
            place = self._places.popitem()[1]
            if place.nbytes:
                self._device.free(place.address)
        self._now = Place(0, 0, {}, {})
