"""Samplers: each a small function from noise levels to linear steps in (x, x0).

A step reads ``x' = cx*x + c0*x0 + sum_k w[k]*x0_k + d*noise``, where ``x0_k`` are earlier x0 estimates, newest first.
The state stays in the model's own variance-preserving coordinates, ``x = alpha*x0 + sigma*noise``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from .errors import ArgumentError, choices
from .levels import Level


@dataclass(frozen=True)
class Step:
    """Coefficients of one linear step (see the module)."""

    cx: float
    c0: float
    w: tuple[float, ...] = ()
    d: float = 0.0


Steps = Callable[[Sequence[Level]], Iterator[Step]]


def ddim(levels: Sequence[Level], eta: float = 0.0) -> Iterator[Step]:
    """DDIM (Song et al. 2020, https://arxiv.org/abs/2010.02502, equations 12 and 16).

    In these coordinates Euler's method on the probability-flow ODE is DDIM with eta 0, and Euler ancestral is eta 1.
    """
    for now, to in pairwise(levels):
        ratio = now.alpha * to.sigma / (now.sigma * to.alpha)
        d = eta * to.sigma * math.sqrt(max(0.0, 1 - ratio * ratio))
        keep = math.sqrt(max(0.0, to.sigma**2 - d * d)) / now.sigma
        yield Step(keep, to.alpha - keep * now.alpha, d=d)


def dpmpp_2m(levels: Sequence[Level]) -> Iterator[Step]:
    """DPM-Solver++(2M) (Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 2), midpoint form.

    The first step has no history, and a last step to sigma 0 has no finite h: both are first order.
    """
    previous: Level | None = None
    for now, to in pairwise(levels):
        keep = to.sigma / now.sigma
        gain = to.alpha - keep * now.alpha  # alpha' (1 - exp(-h))
        if previous is None or to.sigma == 0:
            yield Step(keep, gain)
        else:
            r = (now.lam - previous.lam) / (to.lam - now.lam)
            yield Step(keep, gain * (1 + 0.5 / r), (-gain * 0.5 / r,))
        previous = now


@dataclass(frozen=True)
class Sampler:
    """A step function and the conventions its origin attaches to it, so that the same seed gives the same picture.

    Attributes:
        label: the name that pictures carry.
        drop_last, rounded: how timesteps are spaced (see ``levels.timesteps``).
        to_clean: the last level is sigma 0; otherwise the schedule's ``set_alpha_to_one`` decides.
        unit_start: start from noise of deviation 1; otherwise of the first level's sigma, except in leading spacing.
    """

    steps: Steps
    label: str
    drop_last: bool = False
    rounded: bool = True
    to_clean: bool = True
    unit_start: bool = True


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler(ddim, "DDIM", to_clean=False),
    "euler": Sampler(ddim, "Euler", rounded=False, unit_start=False),
    "euler_a": Sampler(partial(ddim, eta=1.0), "Euler a", rounded=False, unit_start=False),
    "dpmpp_2m": Sampler(dpmpp_2m, "DPM++ 2M", drop_last=True),
}


def find(name: str) -> Sampler:
    """The sampler called ``name``; ``ArgumentError`` with the choices otherwise."""
    if not isinstance(name, str) or name not in SAMPLERS:
        raise ArgumentError(f"no sampler {name!r}; choose from {choices(SAMPLERS)}")
    return SAMPLERS[name]
