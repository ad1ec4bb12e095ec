"""What samplers are made of: one linear step in (x, x0), and the few ways in which methods build it.

A step reads ``x' = cx*x + c0*x0 + sum_k w[k]*h_k + d*noise`` and remembers ``h = hx*x + h0*x0``, newest first. The
state stays in the model's own coordinates, ``x = alpha*x0 + sigma*noise``; with ``eps = (x - alpha*x0) / sigma`` every
method written for the noise estimate is linear in (x, x0) too. ``rho = sigma / alpha`` is k-diffusion's sigma.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from .schedule import Level, Schedule


@dataclass(frozen=True)
class LinearStep:
    """Coefficients of one linear step (see the module); ``at`` is the level at which the model is asked.

    ``stage`` is above 0 for the further U-Net calls of one interval between levels.
    """

    at: Level
    cx: float
    c0: float
    w: tuple[float, ...] = ()
    d: float = 0.0
    hx: float = 0.0
    h0: float = 1.0
    stage: int = 0


Levels = Sequence[Level]
Steps = Iterator[LinearStep]


def toward(now: Level, to: Level, keep: float | None = None, d: float = 0.0) -> LinearStep:
    """DDIM's step: put the estimates of x0 and of the noise together again at ``to``.

    ``keep`` is the factor of x; less than ``sigma' / sigma`` leaves room for fresh noise ``d``.
    """
    keep = to.sigma / now.sigma if keep is None else keep
    return LinearStep(now, keep, to.alpha - keep * now.alpha, d=d)


def ancestral(now: Level, to: Level, eta: float = 1.0) -> tuple[float, float]:
    """``(kept, d)``: the deviation kept of the old noise and that of the fresh, ``kept^2 + d^2 = sigma'^2``."""
    ratio = now.alpha * to.sigma / (now.sigma * to.alpha)
    d = min(1.0, eta * math.sqrt(max(0.0, 1 - ratio * ratio))) * to.sigma
    return math.sqrt(max(0.0, to.sigma**2 - d * d)), d


def by_noise(now: Level, to: Level, gains: Sequence[float], positions: Sequence[int] = ()) -> LinearStep:
    """``x' = (alpha'/alpha)*x + alpha'*sum gains[k]*eps_k``, newest first; eps_k (k > 0) lies in the history at
    ``positions[k - 1]``. The history holds eps.
    """
    e = [to.alpha * g for g in gains]
    w = [0.0] * (positions[len(e) - 2] + 1 if len(e) > 1 else 0)
    for place, value in zip(positions, e[1:], strict=False):
        w[place] = value
    cx, c0 = to.alpha / now.alpha + e[0] / now.sigma, -e[0] * now.alpha / now.sigma
    return noting_noise(LinearStep(now, cx, c0, tuple(w)))


def noting_noise(step: LinearStep) -> LinearStep:
    """The step, with eps as what the history keeps of it."""
    return replace(step, hx=1 / step.at.sigma, h0=-step.at.alpha / step.at.sigma)


def straight(levels: Levels, schedule: Schedule) -> Levels:
    """The levels as methods on the ODE see them: slope ``(x - alpha*x0) / sigma`` of ``x / alpha`` over rho.

    With alpha 1 that is ``(x - x0) / sigma`` of x over sigma, the ODE of a flow-matching model, which has no singular
    start. (DDIM's step is the same in either.)
    """
    return [Level(v.t, 1.0, v.sigma) for v in levels] if schedule.flow else levels


def midway(now: Level, to: Level, kept: float, schedule: Schedule) -> Level:
    """Halfway in log rho to the level that a step without its fresh noise would reach."""
    middle = math.sqrt(now.ratio * kept / to.alpha)
    if schedule.flow and now.alpha == 1:  # a straight level
        return straight([schedule.from_sigma(middle)], schedule)[0]
    return schedule.from_ratio(middle)
