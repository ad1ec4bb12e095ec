"""Spacings: which noise levels a run visits."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from ..checks import is_number, is_whole, one_of
from ..errors import ArgumentError, choices, shown
from .schedule import SPACINGS, Float64, Level, Schedule

MAX_STEPS = 10_000  # of a run, though schedules may have more timesteps
MAX_EXPLICIT = 1000  # timesteps or sigmas, unless a model was trained on more
RHO = 7.0  # Karras et al. 2022, table 1
# Align Your Steps (Sabour et al. 2024, https://arxiv.org/abs/2404.14507, table 4): ten steps, as noise levels.
AYS = {
    "ays": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "ays_sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}
OF_SIGMAS = ("karras", "exponential", *AYS)  # these space noise levels, the others timesteps
K_DIFFUSION = (*OF_SIGMAS, "simple", "normal", "sgm_uniform")  # these end clean


def spaced(
    schedule: Schedule,
    steps: int,
    spacing: str,
    *,
    drop_last: bool = False,
    rounded: bool = True,
    clipped: bool = False,
    truncated: bool = False,
    ends: str | None = None,
) -> tuple[Level, ...]:
    """``steps`` levels from noisy to clean; the last one, to which the last step leads, is the sampler's to add.
    Trailing spacing gives fewer where timesteps are clipped.

    Args:
        spacing: leading, trailing, linspace (Lin et al. 2023, https://arxiv.org/abs/2305.08891, table 2); simple,
            normal, sgm_uniform (as A1111 and ComfyUI name them; normal is k-diffusion's own); karras (Karras et al.
            2022, https://arxiv.org/abs/2206.00364, equation 5), exponential; ays, ays_sdxl; lcm.
        drop_last: space ``steps + 1`` points and leave out the cleanest (diffusers' DPM-Solver family) in leading and
            linspace.
        rounded: whole timesteps in linspace and in the spacings of noise levels (the levels themselves stay exact);
            normal and sgm_uniform are fractional in any case.
        clipped: space the timesteps that the schedule's ``lambda_min_clipped`` leaves, in leading, trailing, linspace.
        truncated: whole timesteps in exponential are those below, where ``rounded``, as in diffusers.
        ends: karras and exponential run between the ends of this spacing of timesteps, in place of all noise levels.

    Raises:
        ArgumentError: an unknown spacing, one that the schedule cannot use, or steps out of range.
    """
    one_of("spacing", spacing, SPACINGS)
    if not is_whole(steps):
        raise ArgumentError(f"num_inference_steps is {shown(steps)}; it must be a whole number")
    total, steps, distilled = schedule.num_train_timesteps, int(steps), schedule.original_inference_steps
    if spacing == "lcm" and total < distilled:
        raise ArgumentError(
            f"spacing lcm needs at least {distilled} trained timesteps; this model has {total}; choose from "
            f"{choices(name for name in SPACINGS if name != 'lcm')}"
        )
    last = schedule.clipped_timesteps if clipped and not schedule.flow else total
    extra_point = drop_last and spacing in ("leading", "linspace")
    limit = min(distilled if spacing == "lcm" else total, total if spacing in OF_SIGMAS else last - extra_point)
    limit = min(limit, MAX_STEPS)
    if not 1 <= steps <= limit:
        raise ArgumentError(
            f"num_inference_steps is {shown(steps)}; it must be 1 .. {limit} for this model and sampler"
        )
    if spacing in OF_SIGMAS:
        bounds = schedule.sigma_range
        if ends is not None:
            within = spaced(schedule, steps, ends, rounded=False)
            bounds = within[-1].ratio, within[0].ratio
        levels = from_sigmas(schedule, _sigmas(schedule, steps, spacing, bounds), rounded=rounded)
        cut = truncated and rounded and spacing == "exponential" and not schedule.flow
        return _truncated(schedule, levels) if cut else levels
    if schedule.flow:
        return from_sigmas(schedule, _straight(schedule, steps, spacing, drop_last))
    ts = _timesteps(schedule, steps, spacing, drop_last, rounded, last)
    return tuple(schedule.level(t, log=spacing in K_DIFFUSION) for t in ts)


def _timesteps(schedule: Schedule, steps: int, spacing: str, drop_last: bool, rounded: bool, last: int) -> Float64:
    """The timesteps of the spacings that space them, float64 (steps,); below ``last`` in the first three."""
    total, points = schedule.num_train_timesteps, steps + 1 if drop_last else steps
    if spacing == "trailing":
        down: Float64 = np.round(np.arange(last, 0, -total / steps, dtype=np.float64))
        return down[:steps] - 1
    if spacing == "simple":
        simple: Float64 = total - 1 - np.floor(np.arange(steps) * (total / steps))
        return simple
    if spacing == "lcm":
        distilled = schedule.original_inference_steps
        origin: Float64 = np.arange(distilled, 0, -1, dtype=np.float64) * (total // distilled) - 1
        chosen: Float64 = origin[np.floor(np.arange(steps) * (distilled / steps)).astype(int)]
        return chosen
    if spacing == "normal":
        return np.linspace(total - 1, 0, steps, dtype=np.float64)
    if spacing == "sgm_uniform":
        return np.linspace(total - 1, 0, steps + 1, dtype=np.float64)[:-1]
    if spacing == "leading":
        up: Float64 = np.arange(points, dtype=np.float64) * (last // points) + schedule.steps_offset
    else:
        up = np.linspace(0, last - 1, points, dtype=np.float64)
        up = np.round(up) if rounded else up
    t: Float64 = up[::-1][:steps]
    # An offset must not lead past the last trained timestep (as many steps as timesteps).
    return t - max(0.0, float(t[0]) - (total - 1))


def _straight(schedule: Schedule, steps: int, spacing: str, drop_last: bool) -> Float64:
    """A flow model's sigmas: spaced evenly, then shifted."""
    least, most = schedule.sigma_range
    if spacing == "linspace" and drop_last:
        s = np.linspace(1, 1 / schedule.num_train_timesteps, steps + 1)[:-1]
    elif spacing == "linspace":
        # diffusers' FlowMatchEulerDiscreteScheduler ends at the shifted least sigma, and shifts that again.
        s = np.linspace(most, least, steps)
    elif spacing in ("trailing", "simple", "sgm_uniform"):
        s = 1 - np.arange(steps) / steps
    elif spacing == "normal":
        s = np.linspace(1, 1 / schedule.num_train_timesteps, steps)
    else:
        usable = [name for name in SPACINGS if name not in ("leading", "lcm", *AYS)]
        raise ArgumentError(f"spacing {spacing} cannot serve a flow-matching model; choose from {choices(usable)}")
    return np.array([schedule.shifted(v) for v in s])


def _sigmas(schedule: Schedule, steps: int, spacing: str, bounds: tuple[float, float]) -> Float64:
    """The noise levels of the spacings that space them, float64 (steps,), between ``bounds`` (least, greatest)."""
    least, most = bounds
    if spacing in AYS:
        if schedule.flow:
            raise ArgumentError(f"spacing {spacing} cannot serve a flow-matching model; choose another, or give sigmas")
        # Other step counts by linear interpolation of log sigma, as the paper's authors do.
        logs = np.log(AYS[spacing])
        return np.exp(np.interp(np.linspace(0, 1, steps + 1), np.linspace(0, 1, len(logs)), logs))[:-1]
    if math.isinf(most):
        usable = [name for name in SPACINGS if name not in ("karras", "exponential")]
        raise ArgumentError(
            f"spacing {spacing} needs a finite greatest noise level, and this model's schedule ends in pure noise; "
            f"choose from {choices(usable)}"
        )
    ramp = np.linspace(0, 1, steps)
    if spacing == "exponential":
        return np.exp(math.log(most) + ramp * (math.log(least) - math.log(most)))
    high, low = most ** (1 / RHO), least ** (1 / RHO)
    out: Float64 = (high + ramp * (low - high)) ** RHO
    return out


def _truncated(schedule: Schedule, levels: Sequence[Level]) -> tuple[Level, ...]:
    """The levels with timesteps as diffusers' multistep solvers have them in exponential spacing: cut down to whole
    ones, found among logarithms in float32. The first is so below the last trained one where that is rounded up.
    """
    bar = schedule.alpha_bar.astype(np.float32)
    ratios = np.sqrt((1 - bar) / bar)
    logs = np.log(ratios)
    wanted = np.log(np.exp(np.linspace(math.log(ratios[-1]), math.log(ratios[0]), len(levels))))
    low = np.clip(np.searchsorted(logs, wanted, side="right") - 1, 0, len(logs) - 2)
    share = np.clip((logs[low] - wanted) / (logs[low] - logs[low + 1]), 0, 1)
    ts = np.floor((1 - share) * low + share * (low + 1))
    return tuple(replace(level, t=float(t)) for level, t in zip(levels, ts, strict=True))


def from_sigmas(schedule: Schedule, sigmas: Sequence[float] | Float64, *, rounded: bool = False) -> tuple[Level, ...]:
    """Levels of explicit noise levels, as ``Schedule.from_sigma`` takes them; a last 0 is understood.

    Raises:
        ArgumentError: none given, not falling, not above 0, or above the greatest that the model was trained on.
    """
    values = _falling("sigmas", sigmas, schedule)
    given, values = values, values[:-1] if values[-1] == 0 else values
    most = schedule.sigma_range[1]
    if not len(values) or values[-1] <= 0 or values[0] > most * 1.001:  # published lists are rounded
        raise ArgumentError(
            f"sigmas run from {_ends(given)}; they must lie above 0 and at most at {most:.6g}, this model's greatest"
        )
    levels = [schedule.from_sigma(min(float(s), most)) for s in values]
    _apart("sigmas", levels)
    return tuple(Level(float(round(v.t)), v.alpha, v.sigma) if rounded else v for v in levels)


def from_timesteps(schedule: Schedule, ts: Sequence[float]) -> tuple[Level, ...]:
    """Levels of explicit timesteps.

    Raises:
        ArgumentError: none given, not falling, or not among 0 .. num_train_timesteps - 1 (a flow model: above 0, at
            most num_train_timesteps).
    """
    values, total = _falling("timesteps", ts, schedule), schedule.num_train_timesteps
    low, high = (1e-9, total) if schedule.flow else (0, total - 1)
    if values[-1] < low or values[0] > high:
        raise ArgumentError(f"timesteps run from {_ends(values)}; they must lie in {low:g} .. {high}")
    levels = tuple(schedule.level(float(t)) for t in values)
    _apart("timesteps", levels)
    return levels


def _falling(name: str, levels: Any, schedule: Schedule) -> Float64:
    """Explicit levels as float64 (steps,), each below the one before. ``ArgumentError`` for anything else: texts are
    no numbers, though NumPy reads them as such.
    """
    if isinstance(levels, (list, tuple, range)):
        count, numeric = len(levels), True
    else:
        with suppress(Exception):  # a tensor of torch is an array; what others make of themselves is not ours
            levels = np.asarray(levels) if hasattr(levels, "__array__") else levels
        numeric = isinstance(levels, np.ndarray) and levels.ndim == 1 and levels.dtype.kind in "fiu"
        count = len(levels) if numeric else 0
    if count > (most := max(MAX_EXPLICIT, min(schedule.num_train_timesteps, MAX_STEPS))):
        raise ArgumentError(f"{name} are {count} numbers; there may be at most {most}")
    most_of = sys.float_info.max
    if not numeric or not count or not all(is_number(_scalar(v), -most_of, most_of) for v in levels):
        raise ArgumentError(f"{name} are {shown(levels)}; they must be a list of finite numbers")
    values = np.asarray([float(_scalar(v)) for v in levels])
    if (np.diff(values) >= 0).any():
        raise ArgumentError(f"{name} are {shown(values.tolist())}; each must be less than the one before")
    return values


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


def _apart(name: str, levels: Sequence[Level]) -> None:
    for before, after in pairwise(levels):
        if not (after.sigma < before.sigma and after.ratio < before.ratio):
            raise ArgumentError(
                f"{name} fall from {before.t:.9g} to {after.t:.9g} in timesteps, which are one noise level in float64; "
                "leave one out"
            )


def _ends(levels: Float64) -> str:
    return f"{float(levels[0]):g} to {float(levels[-1]):g}"
