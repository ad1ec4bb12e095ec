"""A device whose kernels are interpreted: the loop, the layout of its launches and its memory are the product's own."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgediff.device.array import Block
from edgediff.device.base import Kernels
from edgediff.device.geometry import BLOCK, Geometry
from edgediff.device.host import HostDevice

from .execution import Program
from .memory import Memory, Trace

SHORT = {"float32": "f32", "float16": "f16"}
MOST_BLOCKS = 65536


class PtxDevice(HostDevice):
    """A PTX device is host memory whose kernels are a module's, interpreted.

    Args:
        programs: by entry.
        multiprocessors: of the GPU whose grids are walked.
        order: of a launch's blocks: from their number to groups that run together; None for all at once.
        other: kernels to use in their place.
    """

    def __init__(
        self,
        programs: Mapping[str, Program],
        multiprocessors: int = 2,
        order: Callable[[int], list[list[int]]] | None = None,
        other: Kernels | None = None,
    ) -> None:
        super().__init__()
        self.other = other
        self.programs, self.multiprocessors, self.order = programs, multiprocessors, order
        self.sizes: dict[int, int] = {}
        self.ran: set[str] = set()
        self.counts: dict[str, Counter[str]] = {}  # instructions by entry and opcode
        self.traces: dict[str, Trace] | None = None  # by entry, where they are wanted

    @cached_property
    def kernels(self) -> Kernels:  # type: ignore[override]
        return self.other or PtxKernels(self)

    def allocate(self, size: int) -> int:
        address = super().allocate(size)
        self.sizes[address] = size
        return address

    def free(self, address: int) -> None:
        super().free(address)
        del self.sizes[address]

    def contents(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        """The bytes at an allocated address."""
        room = self.memory[address]
        return room[address - room.ctypes.data :][:nbytes]

    def everything(self) -> bytes:
        """All that is allocated, in the order of its allocation."""
        return b"".join(self.contents(*block).tobytes() for block in self.sizes.items())

    def run(self, entry: str, grid: tuple[int, int], parameters: bytes) -> None:
        """Launch a kernel on all that is allocated, and on nothing else."""
        buffers = {f"{size} bytes at {at:#x}": self.contents(at, size) for at, size in self.sizes.items()}
        trace = None if self.traces is None else self.traces.setdefault(entry, Trace())
        order = None if self.order is None else self.order(grid[0] * grid[1])
        counts = self.counts.setdefault(entry, Counter())
        self.programs[entry].launch(grid, parameters, Memory(buffers, trace), BLOCK, order, counts)
        self.ran.add(entry)


@dataclass(frozen=True)
class PtxKernels:
    """The kernels of a PTX device, launched as a GPU's are."""

    device: PtxDevice

    def update(self, geometry: Geometry, buffers: Mapping[str, Block], emulated: int = 0) -> PtxUpdate:
        return PtxUpdate(self.device, geometry, geometry.state(buffers))

    def unscale(self, x: Block, z: Block, dtype: str, count: int, scale: float, shift: float) -> None:
        parameters = struct.pack("<QQqff", x.address, z.address, count, scale, shift)
        self.device.run(f"unscale_{SHORT[dtype]}", _line(count), parameters)

    def to_uint8(self, decoded: Block, pixels: Block, header: Block, dtype: str, images: int, area: int) -> None:
        addresses = decoded.address, pixels.address
        parameters = struct.pack("<QQqqQ", *addresses, images * area, area, header.address)
        self.device.run(f"pixels_{SHORT[dtype]}", _line(images * area), parameters)


@dataclass(frozen=True)
class PtxUpdate:
    """The launches of one loop."""

    device: PtxDevice
    geometry: Geometry
    state: NDArray[Any]
    pack: int = field(init=False)
    grid: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        x, y, pack = self.geometry.grid(self.state, self.device.multiprocessors)
        object.__setattr__(self, "grid", (x, y))
        object.__setattr__(self, "pack", pack)

    def begin(self) -> None:
        self.device.run(f"begin_{self.pack}_{SHORT[self.geometry.input]}", self.grid, self.state.tobytes())

    def step(self) -> None:
        types = f"{SHORT[self.geometry.input]}_{SHORT[self.geometry.output]}"
        self.device.run(f"step_{self.pack}_{types}", self.grid, self.state.tobytes())


def _line(count: int) -> tuple[int, int]:
    return min(-(-count // BLOCK), MOST_BLOCKS), 1


def shuffled(seed: int) -> Callable[[int], list[list[int]]]:
    """Every block by itself, in an order of chance."""
    rng = np.random.default_rng(seed)
    return lambda blocks: [[int(b)] for b in rng.permutation(blocks)]
