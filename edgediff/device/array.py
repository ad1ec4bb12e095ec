"""What lies in device memory: blocks of bytes, and arrays of values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

BYTES = {"float32": 4, "float16": 2, "int64": 8}  # what a bundle's tensors may be of
FLOAT_TYPES = ("float32", "float16")


class Block(NamedTuple):
    """A block is a piece of device memory."""

    address: int
    nbytes: int


@dataclass(frozen=True)
class DeviceArray:
    """A device array is values in device memory, in C order."""

    address: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * BYTES[self.dtype]

    @property
    def block(self) -> Block:
        return Block(self.address, self.nbytes)
