"""A loop's geometry is what its launches are laid out by: sizes and types, checked for the GPU and for the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import is_whole
from ..errors import ArgumentError, choices, shown
from ..sampling.kernel_layout import BUFFERS, HEADER, MAX_HISTORY, ROW, STATE
from .array import BYTES, FLOAT_TYPES, Block

BLOCK = 256  # threads
FILL = 8  # blocks a multiprocessor: two waves, at 2,048 threads
PACK = 4  # neighbouring values a thread, where there are enough of them
TYPES = {"float32": 0, "float16": 1, "int64": 2}  # Type in types.h
IMAGES, LARGEST = 65535, 1 << 31  # images, and values of one
MOST = 1 << 40  # values of a model's input

WIDE = ("x", "history", "x0", "output", "input")  # those of which four values are read at once


class Grid(NamedTuple):
    """A grid is how a launch covers the values: blocks along an image, blocks along the images, values a thread."""

    x: int
    y: int
    pack: int


@dataclass(frozen=True)
class Geometry:
    """The geometry of a loop's launches.

    Args:
        batch: images.
        size: values of one image's state.
        stride: values of one image in the model's input, at least ``size``.
        depth: slots of history.
        rows: room of the table.
        copies: of the model's input, 1 or 2.
        input, output: the model's types, float32 or float16.
        timestep: float32, float16 or int64.

    Raises:
        ArgumentError: one is out of range.
    """

    batch: int
    size: int
    stride: int
    depth: int
    rows: int
    copies: int
    input: str = "float32"
    output: str = "float32"
    timestep: str = "float32"

    def __post_init__(self) -> None:
        for name, most in (("batch", IMAGES), ("size", LARGEST), ("stride", LARGEST), ("rows", 1 << 20), ("copies", 2)):
            check_count(name, getattr(self, name), most)
        check_count("depth", self.depth, MAX_HISTORY, 0)
        if self.stride < self.size:
            raise ArgumentError(f"stride is {self.stride}, below the size, {self.size}")
        if self.batch * self.stride > MOST:
            raise ArgumentError(f"batch * stride is {self.batch * self.stride} values; it must be at most {MOST}")
        for name, known in (("input", FLOAT_TYPES), ("output", FLOAT_TYPES), ("timestep", tuple(TYPES))):
            check_type(name, getattr(self, name), known)

    @property
    def needs(self) -> dict[str, Block]:
        """The bytes of each buffer, with its alignment in the address's place. Only ``x0`` may be left out besides."""
        values, images = self.batch * self.size, self.copies * self.batch
        return {
            "header": Block(8, HEADER.itemsize),
            "rows": Block(4, self.rows * ROW.itemsize),
            "seeds": Block(8, self.batch * 8),
            "x": Block(4, values * 4),
            "history": Block(4, self.depth * values * 4),
            "x0": Block(4, values * 4),
            "output": Block(BYTES[self.output], self.copies * values * BYTES[self.output]),
            "input": Block(BYTES[self.input], images * self.stride * BYTES[self.input]),
            "timestep": Block(BYTES[self.timestep], images * BYTES[self.timestep]),
        }

    def state(self, buffers: Mapping[str, Block]) -> NDArray[Any]:
        """The structure for these buffers, dtype ``STATE``, (1,).

        Raises:
            ArgumentError: a buffer is missing, unknown, too small or not aligned.
        """
        for name in buffers:
            if name not in BUFFERS:
                raise ArgumentError(f"no buffer {shown(name)}; choose from {choices(BUFFERS)}")
        out = np.zeros(1, STATE)
        for name, (alignment, nbytes) in self.needs.items():
            if name in buffers:
                check_block(name, buffers[name], nbytes, alignment)
                out[name] = buffers[name].address
            elif name != "x0" and nbytes:
                raise ArgumentError(f"buffer {name} is missing")
        out["size"], out["stride"], out["batch"] = self.size, self.stride, self.batch
        for name in ("input", "output", "timestep"):
            out[f"{name}_type"] = TYPES[getattr(self, name)]
        return out

    def grid(self, state: NDArray[Any], multiprocessors: int) -> Grid:
        """How a GPU of so many multiprocessors walks the values: enough blocks to fill it, in strides beyond that.

        Small latents take one value a thread: there latency counts, not bandwidth.
        """
        fill = multiprocessors * FILL
        aligned = all(int(state[name][0]) % 16 == 0 for name in WIDE)
        wide = aligned and self.size % PACK == 0 and self.stride % PACK == 0 and self.batch * self.size >= fill * BLOCK
        pack = PACK if wide else 1
        x = min(-(-(self.size // pack) // BLOCK), fill)
        return Grid(x, min(self.batch, max(fill // x, 1)), pack)


def check_type(what: str, dtype: str, known: tuple[str, ...] = FLOAT_TYPES) -> None:
    """Refuse a type that no kernel has, by ``ArgumentError``."""
    if dtype not in known:
        raise ArgumentError(f"{what} is of type {shown(dtype)}; choose from {choices(known)}")


def check_block(name: str, block: Block, nbytes: int, alignment: int = 1) -> None:
    """Refuse a buffer that is null, too small or not aligned, by ``ArgumentError``."""
    address, size = block
    if not is_whole(address, 1) or not is_whole(size, 0):
        raise ArgumentError(f"buffer {name} is {shown(block)}; it must be an address and its bytes")
    if address % alignment:
        raise ArgumentError(f"buffer {name} lies at {address}; it must be aligned to {alignment} bytes")
    if size < nbytes:
        raise ArgumentError(f"buffer {name} holds {size} bytes; this geometry needs {nbytes}")


def check_count(name: str, count: int, most: int = MOST, least: int = 1) -> None:
    """Refuse what is no whole number of ``least`` .. ``most``, by ``ArgumentError``."""
    if not is_whole(count, least, most):
        raise ArgumentError(f"{name} is {shown(count)}; it must be {least} .. {most}")


def check_unscale(x: Block, z: Block, dtype: str, count: int) -> None:
    """Refuse what ``Kernels.unscale`` refuses."""
    check_type("z", dtype)
    check_count("count", count)
    check_block("x", x, count * 4, 4)
    check_block("z", z, count * BYTES[dtype], BYTES[dtype])


def check_pixels(decoded: Block, pixels: Block, header: Block, dtype: str, images: int, area: int) -> None:
    """Refuse what ``Kernels.to_uint8`` refuses."""
    check_type("decoded", dtype)
    check_count("images", images, IMAGES)
    check_count("area", area, LARGEST)
    check_block("decoded", decoded, 3 * images * area * BYTES[dtype], BYTES[dtype])
    check_block("pixels", pixels, 3 * images * area)
    check_block("header", header, HEADER.itemsize, 8)
