"""The host loop: rows of a plan around U-Net calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .guidance import Combine
from .kernels import advance
from .planning import Plan
from .update import Row, estimate

Array = NDArray[Any]
# (x, t, guided) -> (u, c): the U-Net's unconditional (None unless guided) and conditional outputs, shaped like x.
Denoise = Callable[[Array, float, bool], tuple[Array | None, Array]]
# (index, row, x') -> x'': what goes on in place of the state that a row made, shaped like it.
Between = Callable[[int, Row, Array], Array]


@dataclass(frozen=True)
class LoopStep:
    """A step of the loop is what one U-Net call saw and made: the state ``before``, the outputs, what an unfused
    guidance made of them (``m``; None without), and the state ``after``, which the next call sees.
    """

    row: Row
    before: Array
    u: Array | None
    c: Array
    m: Array | None
    after: Array

    def x0(self) -> Array:
        """The x0 estimate of this step, computed when asked for."""
        if self.m is not None:
            return estimate(self.row.merged(), self.before, None, self.m)
        return estimate(self.row, self.before, self.u, self.c)


def run(
    plan: Plan,
    denoise: Denoise,
    x: Array,
    noise: Callable[[], Array],
    combine: Combine | None = None,
    between: Between | None = None,
) -> Iterator[LoopStep]:
    """Yield after every row; closing the iterator cancels.

    Args:
        plan: the table.
        denoise: calls the U-Net.
        x: the first state.
        noise: called once a row that adds noise.
        combine: guidance that is not linear, run between the halves, unfused; plans with ``mergeable`` alone.
        between: runs after every row, the last included, and returns the state that goes on. A mask keeps what lies
            outside of it with ``mask*x + (1 - mask)*(row.ka*z0 + row.ks*n0)``. The history stays as the row made it.
    """
    history: list[Array] = []  # newest first, each shaped like x
    for index, row in enumerate(plan.rows):
        u, c = denoise(x, row.t, row.guided)
        with np.errstate(over="ignore", invalid="ignore"):  # the caller checks; NumPy would print
            m = None if combine is None else combine(row, x, u, c)
            used = (row, x, u, c) if m is None else (row.merged(), x, None, m)
            after, pushed = advance(*used, history, noise() if row.d else None, plan.depth > 0)
            if pushed is not None:
                history = [pushed, *history[: plan.depth - 1]]
            if between is not None:
                after = between(index, row, after)
        yield LoopStep(row, x, u, c, m, after)
        x = after
