"""The host loop: rows of a plan around U-Net calls, in NumPy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .guidance import Combine
from .table import Plan, Row, estimate, remember, update

Array = NDArray[Any]
# (x, t, guided) -> (u, c): the U-Net's unconditional (None unless guided) and conditional outputs, shaped like x.
Denoise = Callable[[Array, float, bool], tuple[Array | None, Array]]


@dataclass(frozen=True)
class LoopStep:
    """What one U-Net call saw and made: the state ``before``, the outputs, and the state ``after``.

    After an unfused guidance ``c`` holds what it made of both outputs, ``u`` is None and ``row`` is the merged row.
    """

    row: Row
    before: Array
    u: Array | None
    c: Array
    after: Array

    def x0(self) -> Array:
        """The x0 estimate of this step, computed when asked for."""
        return estimate(self.row, self.before, self.u, self.c)


def run(
    plan: Plan, denoise: Denoise, x: Array, noise: Callable[[], Array], combine: Combine | None = None
) -> Iterator[LoopStep]:
    """Yield after every row; closing the iterator cancels.

    Args:
        plan: the table.
        denoise: calls the U-Net.
        x: the first state.
        noise: called once a row that adds noise.
        combine: guidance that is not linear, run between the halves, unfused; plans with ``mergeable`` alone.
    """
    history: deque[Array] = deque(maxlen=max(1, plan.depth))  # newest first, each shaped like x
    for row in plan.rows:
        u, c = denoise(x, row.t, row.guided)
        with np.errstate(over="ignore", invalid="ignore"):  # the caller checks; NumPy would print
            if combine is not None:
                row, u, c = row.merged(), None, combine(row, x, u, c)
            after = update(row, x, u, c, history, noise() if row.d else None)
            if plan.depth:
                history.appendleft(remember(row, x, u, c))
        yield LoopStep(row, x, u, c, after)
        x = after
