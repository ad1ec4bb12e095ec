"""The arithmetic of one row: the plain NumPy reference that every kernel is held against.

With ``u`` and ``c`` the U-Net's unconditional and conditional outputs, ``h_k`` the history and ``n`` fresh noise::

    x' = a*x + bu*u + bc*c + sum_k w_k*h_k + d*n
    h' = p*x + qu*u + qc*c                         (pushed to the front of the history)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Row:
    """A row is one U-Net call. It holds Python floats, so that float32 arrays stay float32.

    ``t`` is the timestep the U-Net is told.

    Where ``guided`` is False there is no ``u`` and the U-Net runs on the conditional half alone. ``scale`` is the
    guidance g (1 without), and ``(x0_x, x0_m)`` gives the estimate ``x0 = x0_x*x + x0_m*m`` of ``m = u + g*(c - u)``.
    ``(ka, ks)`` are alpha and sigma of the level that the row leads to: ``ka*x0 + ks*noise`` is a picture noised to it.

    The fields are the columns of the kernels' table as well, in this order (``ROW_COLUMNS`` in cpp_ext/cuda/types.h).
    """

    t: float
    a: float
    bu: float
    bc: float
    w: tuple[float, ...]
    d: float
    p: float
    qu: float
    qc: float
    guided: bool
    scale: float
    x0_x: float
    x0_m: float
    ka: float
    ks: float

    def merged(self) -> Row:
        """The row for one output ``m`` in place of both; for plain guidance alone (see ``Plan.mergeable``)."""
        return replace(self, bu=0.0, bc=self.bu + self.bc, qu=0.0, qc=self.qu + self.qc, guided=False, scale=1.0)


def guide(row: Row, u: Array | None, c: Array) -> Array:
    """``m = u + g*(c - u)``; a new array, or ``c`` itself without guidance."""
    return c if u is None else row.scale * c + (1 - row.scale) * u


def estimate(row: Row, x: Array, u: Array | None, c: Array) -> Array:
    """The x0 estimate of this step, same shape and dtype as ``x``."""
    out = row.x0_m * guide(row, u, c)
    if row.x0_x:
        out += row.x0_x * x
    return out


def remember(row: Row, x: Array, u: Array | None, c: Array) -> Array:
    """``h'``: what the history keeps of this step, same shape and dtype as ``x``."""
    h = row.qc * c
    if row.p:
        h += row.p * x
    if u is not None:
        h += row.qu * u
    return h


def update(
    row: Row, x: Array, u: Array | None, c: Array, history: Sequence[Array] = (), n: Array | None = None
) -> Array:
    """``x'``: the plain NumPy twin that every kernel is held against. Inputs are not changed.

    Args:
        x: state, (B, C, h, w) float32 or float64; ``u`` (None when the row is not guided), ``c``, ``n`` alike.
        history: past ``h``, newest first, at least ``len(row.w)`` of them.
        n: fresh unit noise; read only when ``row.d`` is not 0.
    """
    out = row.a * x
    out += row.bc * c
    if u is not None:
        out += row.bu * u
    for weight, h in zip(row.w, history, strict=False):
        if weight:
            out += weight * h
    if row.d:
        if n is None:
            raise ArgumentError("this row adds noise (d != 0) but none was given")
        out += row.d * n
    return out
