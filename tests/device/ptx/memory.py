"""A device's memory, of which nothing but the given buffers may be touched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
MANY = -1  # blocks


class MemoryFault(Exception):
    """An access that a GPU would not, or must not, make."""


class _Buffer(NamedTuple):
    name: str
    start: int
    end: int
    values: NDArray[np.uint8]


class Memory:
    """A memory is the arrays of this process, at their own addresses.

    Args:
        buffers: contiguous arrays by name. What a kernel writes is found in them.
        trace: notes which block touches what.

    Raises:
        ValueError: a buffer does not begin at a multiple of 16.
    """

    def __init__(self, buffers: Mapping[str, Array], trace: Trace | None = None) -> None:
        made = []
        for name, values in buffers.items():
            start = values.ctypes.data
            if start % 16:
                raise ValueError(f"buffer {name} begins at {start:#x}, which is no multiple of 16")
            made.append(_Buffer(name, start, start + values.nbytes, values.reshape(-1).view(np.uint8)))
        self._buffers = sorted(made, key=lambda b: b.start)
        self._starts = np.array([b.start for b in self._buffers], np.uint64)
        self._trace = trace

    def load(self, addresses: NDArray[np.uint64], dtype: Any, count: int, blocks: Array) -> Array:
        """``count`` neighbouring values at each address, (threads, count); ``blocks`` are the threads' own."""
        dtype = np.dtype(dtype)
        out = np.empty((len(addresses), count), dtype)
        for mine, values, at in self._places("load", addresses, dtype, count, blocks):
            for k in range(count):
                out[mine, k] = values[at + k]
        return out

    def store(self, addresses: NDArray[np.uint64], values: Array, blocks: Array) -> None:
        """Write ``values``, (threads, count), to the addresses."""
        count = values.shape[1]
        for mine, into, at in self._places("store", addresses, values.dtype, count, blocks):
            for k in range(count):
                into[at + k] = values[mine, k]

    def change(self, addresses: NDArray[np.uint64], values: Array, blocks: Array, combine: Any) -> Array:
        """One atomic operation a thread, one after the other; what was there before, (threads,)."""
        before = np.empty(len(addresses), values.dtype)
        for mine, into, at in self._places("atomic", addresses, values.dtype, 1, blocks):
            order = np.arange(len(addresses))[mine]
            for thread, place in zip(order, at, strict=True):
                before[thread] = into[place]
                into[place] = combine(into[place], values[thread])
        return before

    def _places(self, what: str, addresses: NDArray[np.uint64], dtype: Any, count: int, blocks: Array) -> Any:
        """By buffer: whose addresses lie in it, its values of this type, and their indices."""
        size = dtype.itemsize * count
        if (odd := addresses % np.uint64(size) != 0).any():
            raise MemoryFault(f"{what} of {size} bytes at {int(addresses[odd][0]):#x}, which is not aligned")
        found = np.searchsorted(self._starts, addresses, "right") - 1
        first = int(found[0])
        for k in [first] if (found == first).all() else np.unique(found).tolist():
            mine: Any = slice(None) if k == first and len(addresses) == np.count_nonzero(found == k) else found == k
            here = addresses[mine]
            if k < 0 or (out := int(here.max()) + size) > self._buffers[k].end:
                bad = int(here.min()) if k < 0 else out - size
                near = self._buffers[max(k, 0)].name
                raise MemoryFault(f"{what} of {size} bytes at {bad:#x}, outside of every buffer (near {near})")
            name, start, end, values = self._buffers[k]
            at = ((here - np.uint64(start)) // np.uint64(dtype.itemsize)).astype(np.int64)
            if self._trace is not None:
                self._trace.note(what, name, end - start, at * dtype.itemsize, size, blocks[mine])
            width = (end - start) // dtype.itemsize * dtype.itemsize
            yield mine, values[:width].view(dtype), at


class Trace:
    """A trace notes of every byte which block reads it and which writes it."""

    def __init__(self) -> None:
        self._by: dict[str, tuple[Array, Array]] = {}  # buffer -> of each byte, its reader and its writer: block + 1

    @property
    def touched(self) -> int:
        """How many bytes were read or written."""
        return sum(int(np.count_nonzero(reader | writer)) for reader, writer in self._by.values())

    def note(self, what: str, name: str, nbytes: int, offsets: Array, size: int, blocks: Array) -> None:
        if name not in self._by:
            self._by[name] = np.zeros(nbytes, np.int64), np.zeros(nbytes, np.int64)
        reader, writer = self._by[name]
        for k in range(size):
            if what != "store":
                _mark(reader, offsets + k, blocks + 1)
            if what != "load":
                _mark(writer, offsets + k, blocks + 1)

    def shared(self) -> dict[str, list[int]]:
        """By buffer, the offsets of the bytes that one block wrote and another read or wrote."""
        out = {}
        for name, (reader, writer) in self._by.items():
            several = (writer == MANY) | ((writer > 0) & (reader != 0) & (reader != writer))
            if several.any():
                out[name] = np.flatnonzero(several).tolist()
        return out


def _mark(by: Array, places: Array, blocks: Array) -> None:
    known = by[places]
    by[places] = blocks
    several = (by[places] != blocks) | ((known != 0) & (known != blocks))  # in this instruction, or before
    by[places[several]] = MANY
