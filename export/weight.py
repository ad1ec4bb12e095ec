"""A weight is read when it is needed: a model's weights are never all in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]


@dataclass(frozen=True)
class Weight:
    """A constant of a graph. ``read`` gives its values, and keeps nothing.

    ``constant`` is True for numbers of the graph's own arithmetic, such as the frequencies that embed a timestep: no
    file holds them, and no precision rounds them. ``mapped`` gives the same values as a file holds them, without a
    copy: in fp16 perhaps, and ``turned`` where its two axes are exchanged.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    read: Callable[[], Array]
    constant: bool = False
    mapped: Callable[[], Array] | None = None
    turned: bool = False

    @property
    def size(self) -> int:
        """The size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @staticmethod
    def of(values: Array, *, constant: bool = False) -> Weight:
        """Make a weight of values in memory."""
        return Weight(values.shape, values.dtype, lambda: values, constant)

    @staticmethod
    def in_file(shape: tuple[int, ...], mapped: Callable[[], Array]) -> Weight:
        """Make a float32 weight of float16 or float32 values that ``mapped`` finds in a file."""
        return Weight(shape, np.dtype(np.float32), lambda: mapped().astype(np.float32, copy=False), mapped=mapped)

    @property
    def transposed(self) -> Weight:
        """The weight (columns, rows) of one (rows, columns)."""
        shape, read = self.shape[::-1], self.read
        return replace(self, shape=shape, read=lambda: read().T, turned=not self.turned)

    def half_of_rows(self, second: bool) -> Weight:
        """The first or the second half of the rows; of a weight as its file holds it."""
        rows = self.shape[0] // 2
        part = slice(rows, None) if second else slice(rows)
        read, mapped = self.read, self.mapped
        return replace(
            self,
            shape=(rows, *self.shape[1:]),
            read=lambda: read()[part],
            mapped=None if mapped is None else lambda: mapped()[part],
        )
