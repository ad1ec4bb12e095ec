"""A sampler is a table: one row of numbers per U-Net call, with prediction type and guidance folded in.

With ``u`` and ``c`` the U-Net's unconditional and conditional outputs, ``h_k`` the history and ``n`` fresh noise::

    x' = a*x + bu*u + bc*c + sum_k w_k*h_k + d*n
    h' = p*x + qu*u + qc*c                         (h' is the x0 estimate, pushed to the front of the history)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import ArgumentError
from .levels import CLEAN, Level, Schedule, timesteps
from .samplers import find

MAX_GUIDANCE = 1000.0  # float32 latents mean nothing long before

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Row:
    """One step. Python floats, so that float32 arrays stay float32. ``t`` is the timestep the U-Net is told.

    Without guidance (``guided`` is False) there is no ``u`` and the U-Net runs on the conditional half alone.
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


@dataclass(frozen=True)
class Plan:
    """The rows of one run.

    Attributes:
        sampler, spacing: the names it was made from.
        levels: the noise levels, one more than rows.
        guidance_scale: as it was given.
        start: factor of the unit starting noise.
        depth: how many past ``h`` the rows read.
    """

    sampler: str
    spacing: str
    guidance_scale: float
    levels: tuple[Level, ...]
    rows: tuple[Row, ...]
    start: float
    depth: int

    @property
    def stochastic(self) -> bool:
        return any(row.d for row in self.rows)

    def __str__(self) -> str:
        names = [f"w{k}" for k in range(self.depth)]
        head = ["step", "t", "alpha", "sigma", "a", "bu", "bc", *names, "d", "p", "qu", "qc"]
        lines = ["".join(f"{h:>11}" for h in head)]
        for k, (row, level) in enumerate(zip(self.rows, self.levels, strict=False)):
            w = [*row.w, *[0.0] * (self.depth - len(row.w))]
            cells = [level.alpha, level.sigma, row.a, row.bu, row.bc, *w, row.d, row.p, row.qu, row.qc]
            lines.append(f"{k:>11}{row.t:>11.4g}" + "".join(f"{v:>11.5f}" for v in cells))
        return "\n".join(lines)


def x0_from(prediction: str, level: Level) -> tuple[float, float]:
    """``(P, Q)`` with ``x0 = P*x + Q*m`` for the model output ``m`` (Salimans & Ho 2022, section 4, for v)."""
    if prediction == "v_prediction":
        return level.alpha, -level.sigma
    if prediction == "sample":
        return 0.0, 1.0
    return 1 / level.alpha, -level.sigma / level.alpha


def plan(
    schedule: Schedule,
    sampler: str = "ddim",
    steps: int = 20,
    guidance_scale: float = 7.5,
    spacing: str | None = None,
) -> Plan:
    """The table of one run.

    Args:
        schedule: the model's noise schedule and prediction type.
        sampler: a key of ``samplers.SAMPLERS``.
        steps: U-Net calls.
        guidance_scale: classifier-free guidance, ``m = u + g*(c - u)`` (Ho & Salimans 2022); off at 1 and below.
        spacing: leading, trailing or linspace; the schedule's own when None.

    Raises:
        ArgumentError: an unknown name, steps out of range, a guidance scale that is not finite.
    """
    recipe = find(sampler)
    if isinstance(guidance_scale, bool) or not isinstance(guidance_scale, (int, float, np.number)):
        raise ArgumentError(f"guidance_scale is {guidance_scale!r}; it must be a number")
    g = float(guidance_scale)
    if not abs(g) <= MAX_GUIDANCE:  # NaN too
        raise ArgumentError(
            f"guidance_scale is {guidance_scale}; it must be finite, at most {MAX_GUIDANCE:g} either way"
        )
    spacing = schedule.timestep_spacing if spacing is None else spacing
    ts = timesteps(schedule, steps, spacing, drop_last=recipe.drop_last, rounded=recipe.rounded)
    clean = recipe.to_clean or schedule.set_alpha_to_one
    levels = (*(schedule.level(t) for t in ts), CLEAN if clean else schedule.level(0))
    given, guided = g, g > 1
    if not guided:
        g = 1.0
    rows = []
    for level, step in zip(levels, recipe.steps(levels), strict=False):
        p, q = x0_from(schedule.prediction_type, level)
        rows.append(
            Row(
                t=level.t,
                a=step.cx + step.c0 * p,
                bu=step.c0 * q * (1 - g),
                bc=step.c0 * q * g,
                w=step.w,
                d=step.d,
                p=p,
                qu=q * (1 - g),
                qc=q * g,
                guided=guided,
            )
        )
    start = 1.0 if recipe.unit_start or spacing == "leading" else levels[0].sigma
    return Plan(sampler, spacing, given, levels, tuple(rows), start, max(len(row.w) for row in rows))


def estimate(row: Row, x: Array, u: Array | None, c: Array) -> Array:
    """``h'``: the x0 estimate of this step, same shape and dtype as ``x``."""
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
        history: past estimates, newest first, at least ``len(row.w)`` of them.
        n: fresh unit noise; read only when ``row.d`` is not 0.
    """
    out = row.a * x
    out += row.bc * c
    if u is not None:
        out += row.bu * u
    for weight, h in zip(row.w, history, strict=False):
        out += weight * h
    if row.d:
        if n is None:
            raise ArgumentError("this row adds noise (d != 0) but none was given")
        out += row.d * n
    return out
