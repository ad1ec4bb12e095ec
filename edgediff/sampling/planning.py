"""A sampler is a table: ``plan()`` makes the rows of a run, with prediction type and guidance folded in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..checks import is_number, one_of
from ..errors import ArgumentError, choices, shown
from .linear_step import LinearStep
from .names import resolve
from .samplers import SAMPLERS
from .schedule import Level, Schedule
from .update import Row
from .visits import Visits, visits

MAX_GUIDANCE = 1000.0  # float32 latents mean nothing long before
GUIDANCES = ("cfg", "cfg++")
Scale = float | Sequence[float]


@dataclass(frozen=True)
class Plan:
    """A plan is the rows of one run.

    Attributes:
        sampler, spacing: the names it was made from; spacing is custom for explicit timesteps or sigmas. Where the
            model's own scheduler has Karras' levels between the ends of leading timesteps it is "karras in leading";
            "linspace by 166" where steps go down by 166 timesteps, whichever is next.
        levels: the level of the state before each row, and the last.
        guidance_scale: as it was given.
        start: factor of the unit starting noise.
        depth: how many past ``h`` the rows read.
        intervals: steps as the user counts them; some samplers call the U-Net twice in one.
        guidance: cfg or cfg++.
    """

    sampler: str
    spacing: str
    guidance_scale: float | tuple[float, ...]
    levels: tuple[Level, ...]
    rows: tuple[Row, ...]
    start: float
    depth: int
    intervals: int
    guidance: str = "cfg"

    @property
    def label(self) -> str:
        """The sampler's name as pictures carry it."""
        return SAMPLERS[self.sampler].label

    @property
    def stochastic(self) -> bool:
        return any(row.d for row in self.rows)

    @property
    def guided(self) -> bool:
        """Whether any row asks the U-Net for its unconditional output."""
        return any(row.guided for row in self.rows)

    @property
    def mergeable(self) -> bool:
        """Whether u and c may be combined before the row (CFG++ uses u on its own)."""
        return self.guidance == "cfg"

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: the fields alone. The table that ``kernel_layout.packed`` keeps is read-only
        and laid out as this release has it; a copy would be neither.
        """
        return {name: value for name, value in vars(self).items() if name in self.__dataclass_fields__}

    def __str__(self) -> str:
        names = [f"w{k}" for k in range(self.depth)]
        head = ["call", "t", "alpha", "sigma", "a", "bu", "bc", *names, "d", "p", "qu", "qc"]
        lines = ["".join(f"{h:>11}" for h in head)]
        for k, (row, level) in enumerate(zip(self.rows, self.levels, strict=False)):
            w = [*row.w, *[0.0] * (self.depth - len(row.w))]
            cells = [level.alpha, level.sigma, row.a, row.bu, row.bc, *w, row.d, row.p, row.qu, row.qc]
            lines.append(f"{k:>11}{row.t:>11.4g}" + "".join(f"{v:>11.5f}" for v in cells))
        return "\n".join(lines)


def x0_from(prediction: str, level: Level) -> tuple[float, float]:
    """``(P, Q)`` with ``x0 = P*x + Q*m`` for the model output ``m``.

    epsilon: Ho et al. 2020, equation 15; v: Salimans & Ho 2022 (https://arxiv.org/abs/2202.00512), section 4; flow: the
    output is ``noise - x0`` (Lipman et al. 2022, https://arxiv.org/abs/2210.02747).

    Raises:
        ArgumentError: epsilon at a level without signal, where it says nothing of x0.
    """
    if prediction == "v_prediction":
        return level.alpha, -level.sigma
    if prediction == "flow_prediction":
        return 1.0, -level.sigma
    if prediction == "sample":
        return 0.0, 1.0
    if level.alpha == 0:
        raise ArgumentError(
            f"timestep {level.t:g} is pure noise (zero terminal SNR), where an epsilon prediction says nothing of the "
            "picture; use a spacing that leaves it out (leading), or a v_prediction model"
        )
    return 1 / level.alpha, -level.sigma / level.alpha


def plan(
    schedule: Schedule,
    sampler: str = "ddim",
    steps: int | None = None,
    guidance_scale: Scale = 7.5,
    spacing: str | None = None,
    *,
    eta: float | None = None,
    guidance: str = "cfg",
    guidance_interval: tuple[float, float] | None = None,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
) -> Plan:
    """The table of one run.

    Runs shorter than a sampler's order are of the order that their history allows.

    Args:
        schedule: the model's noise schedule and prediction type.
        sampler: a key or label of ``samplers.SAMPLERS``, a diffusers class name, or an A1111 label, which may name the
            spacing too ("DPM++ 2M Karras"); ``spacing`` has the last word.
        steps: intervals between noise levels; 20 when None. Heun, DPM2, 2S a and SDE call the U-Net twice in most.
        guidance_scale: g of classifier-free guidance, ``m = u + g*(c - u)`` (Ho & Salimans 2022), or one g a step; off
            where it is 1 or below. With CFG++ it is the paper's lambda, 0 .. 1.
        spacing: one of ``schedule.SPACINGS``; the sampler's or the schedule's own when None.
        eta: 0 .. 1, the share of fresh noise, for samplers that take it; their own when None.
        guidance: cfg, or cfg++ (Chung et al. 2024, https://arxiv.org/abs/2406.08070), which puts the unconditional
            noise back; for samplers without history.
        guidance_interval: (start, stop) in shares of the run, 0 .. 1, each rounded to the nearest step; elsewhere the
            U-Net runs on the conditional half alone (Kynkaanniemi et al. 2024, https://arxiv.org/abs/2404.07724).
        timesteps, sigmas: explicit levels in place of a spacing, noisy to clean.

    Raises:
        ArgumentError: an unknown name, a number out of range, arguments that exclude each other.
    """
    if not isinstance(schedule, Schedule):
        raise ArgumentError(f"schedule is {shown(schedule)}; it must be a Schedule, for example pipe.bundle.schedule")
    key, named = resolve(sampler)
    entry = SAMPLERS[key]
    visited = visits(schedule, entry, named, steps, spacing, timesteps, sigmas)
    levels, spacing = visited.levels, visited.spacing
    scales = _scales(guidance_scale, len(levels) - 1, guidance)
    first, stop = _interval(guidance_interval, len(levels) - 1)
    if guidance != "cfg" and not entry.memoryless:
        fitting = [name for name, other in SAMPLERS.items() if other.memoryless]
        raise ArgumentError(f"guidance {guidance} needs a sampler without history; choose from {choices(fitting)}")
    linear = _steps(key, visited, schedule, eta)
    # Some samplers look at a flow model's levels as straight ones, with alpha 1.
    states = [replace(step.at, alpha=1 - step.at.sigma) if schedule.flow else step.at for step in linear]
    states.append(levels[-1])
    rows, interval = [], -1
    for step, to in zip(linear, states[1:], strict=True):
        interval += step.stage == 0
        g = scales[interval] if first <= interval < stop else None
        row = _row(step, to, schedule.prediction_type, g, guidance)
        if not all(math.isfinite(v) for v in (row.a, row.bu, row.bc, *row.w, row.d, row.p, row.qu, row.qc)):
            raise ArgumentError(f"sampler {key} has no finite step from timestep {step.at.t:g} with {spacing} spacing")
        rows.append(row)
    return Plan(
        sampler=key,
        spacing=spacing,
        guidance_scale=tuple(scales) if np.ndim(guidance_scale) else scales[0],
        levels=tuple(states),
        rows=tuple(rows),
        start=visited.start,
        depth=max(len(row.w) for row in rows),
        intervals=len(levels) - 1,
        guidance=guidance,
    )


def _steps(key: str, visited: Visits, schedule: Schedule, eta: float | None) -> list[LinearStep]:
    function = SAMPLERS[key].steps
    if visited.aims:
        function = partial(function, aims=visited.aims)
    if eta is not None:
        if not SAMPLERS[key].eta:
            takers = [name for name, other in SAMPLERS.items() if other.eta]
            raise ArgumentError(f"sampler {key} takes no eta; these do: {choices(takers)}")
        function = partial(function, eta=_number("eta", eta, 0, 1))
    try:
        with np.errstate(all="ignore"):  # the caller refuses what is not finite
            return list(function(visited.levels, schedule))
    except (ArithmeticError, np.linalg.LinAlgError) as error:
        raise ArgumentError(f"sampler {key} has no finite steps on these levels: {error}") from error


def _row(step: LinearStep, to: Level, prediction: str, g: float | None, guidance: str) -> Row:
    """A step to the level ``to`` with x0 = P*x + Q*m and m = u + g*(c - u) put in; no guidance when ``g`` is None."""
    p, q = x0_from(prediction, step.at)
    guided = g is not None and (guidance == "cfg++" or g > 1)
    g = g if g is not None and guided else 1.0
    # CFG++ takes the noise that is put back, x - alpha*x0, from u alone.
    back = step.cx * step.at.alpha if guided and guidance == "cfg++" else 0.0
    c0 = step.c0 + back
    return Row(
        t=step.at.t,
        a=step.cx + step.c0 * p,
        bu=q * (c0 * (1 - g) - back) if guided else 0.0,
        bc=q * c0 * g,
        w=step.w,
        d=step.d,
        p=step.hx + step.h0 * p,
        qu=step.h0 * q * (1 - g) if guided else 0.0,
        qc=step.h0 * q * g,
        guided=guided,
        scale=g,
        x0_x=p,
        x0_m=q,
        ka=to.alpha,
        ks=to.sigma,
    )


def _scales(scale: Scale, count: int, guidance: str) -> list[float]:
    one_of("guidance", guidance, GUIDANCES)
    several = isinstance(scale, (list, tuple)) or (isinstance(scale, np.ndarray) and scale.ndim > 0)
    values: list[Any] = list(scale) if several else [scale]  # type: ignore[arg-type]
    if several and len(values) != count:
        raise ArgumentError(f"guidance_scale has {len(values)} values; {count} steps need as many")
    values = [v.item() if isinstance(v, np.ndarray) and v.ndim == 0 else v for v in values]
    limits = (0.0, 1.0) if guidance == "cfg++" else (-MAX_GUIDANCE, MAX_GUIDANCE)
    scales = [_number("guidance_scale", v, *limits) for v in values]
    return scales if several else scales * count


def _interval(interval: tuple[float, float] | None, count: int) -> tuple[int, int]:
    if interval is None:
        return 0, count
    if not isinstance(interval, (list, tuple)) or len(interval) != 2:
        raise ArgumentError(f"guidance_interval is {shown(interval)}; it must be (start, stop), for example (0.2, 0.8)")
    start, stop = (_number("guidance_interval", v, 0, 1) for v in interval)
    if start > stop:
        raise ArgumentError(f"guidance_interval is {shown(interval)}; it must not stop before it starts")
    first, end = math.floor(start * count + 0.5), math.floor(stop * count + 0.5)
    if start < stop and first == end:  # shorter than a step: the step that it lies in
        first = min(math.floor(start * count), count - 1)
        end = first + 1
    return first, end


def _number(name: str, value: Any, low: float, high: float) -> float:
    if not is_number(value):
        raise ArgumentError(f"{name} is {shown(value)}; it must be a number")
    if not is_number(value, low, high):  # NaN too
        raise ArgumentError(f"{name} is {shown(value)}; it must be {low:g} .. {high:g}")
    return float(value)
