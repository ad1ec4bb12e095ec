"""Guidance that is not linear: it runs between the U-Net and the row, unfused, and gives one output ``m`` for both.

Everything is per image: batches do not change pictures. Arrays are (B, C, h, w) float32 or float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..checks import number
from ..errors import ArgumentError
from .planning import Plan
from .update import Row, estimate, guide

Array = NDArray[Any]
Combine = Callable[[Row, Array, "Array | None", Array], Array]
Hook = Callable[[Array], Array]

IMAGE, CHANNEL = (1, 2, 3), (2, 3)  # axes of one picture, and of one channel of it

Method = Literal["cfg", "cfg++", "apg"]
METHODS: tuple[str, ...] = get_args(Method)


@dataclass(frozen=True)
class Apg:
    """Adaptive projected guidance (Sadat et al. 2024, https://arxiv.org/abs/2410.02416, algorithm 1).

    The difference of the x0 estimates loses the part that lies along the conditional one, which oversaturates.

    Attributes:
        eta: how much of that part stays; 1 is plain guidance.
        norm_threshold: greatest norm of the difference over one latent; 0 sets none. None: 15 at 4x128x128 values (the
            paper's for SDXL), otherwise in proportion to the root of their number.
        momentum: share of the earlier differences; negative pushes away from them.
    """

    eta: float = 0.0
    norm_threshold: float | None = None
    momentum: float = -0.5

    def __post_init__(self) -> None:
        for name, low, high in (("eta", 0.0, 1.0), ("norm_threshold", 0.0, 1e6), ("momentum", -1.0, 1.0)):
            value = getattr(self, name)
            if name == "norm_threshold" and value is None:
                continue
            number(f"apg {name}", value, low, high)

    def start(self) -> Combine:
        """Guidance for one run; it holds the running average."""
        average: Array | float = 0.0

        def combine(row: Row, x: Array, u: Array | None, c: Array) -> Array:
            nonlocal average
            if u is None:
                return c
            toward = estimate(row, x, None, c)
            # The estimates differ by the outputs alone.
            average = row.x0_m * (c - u) + self.momentum * average
            difference = average
            most = self.norm_threshold
            if most is None:
                most = 15 * math.sqrt(c[0].size / (4 * 128 * 128))
            if most:
                norm = np.sqrt(_dot(difference, difference))
                difference = difference * np.minimum(1, most / np.maximum(norm, 1e-12)).astype(c.dtype)
            along = (_dot(difference, toward) / np.maximum(_dot(toward, toward), 1e-24)).astype(c.dtype) * toward
            x0 = toward + (row.scale - 1) * (difference - (1 - self.eta) * along)
            return _output(row, x, x0)

        return combine


def rescale(m: Array, c: Array, phi: float) -> Array:
    """Bring each guided output's deviation back to that of the conditional one, by the share ``phi`` (Lin et al. 2023,
    https://arxiv.org/abs/2305.08891, equations 15 and 16).
    """
    spread = m.std(axis=IMAGE, keepdims=True)
    ratio = c.std(axis=IMAGE, keepdims=True) / np.where(spread > 0, spread, 1)
    out: Array = m * (phi * ratio + (1 - phi)).astype(m.dtype)
    return out


def latent_threshold(x0: Array, free: Array, ratio: float) -> Array:
    """Dynamic thresholding for latents, which have no fixed range and whose channels mean different things: each
    channel is clipped and scaled about its own mean, so that its quantile ``ratio`` comes down to that of ``free``,
    the estimate without guidance; untouched where it is below.
    """
    middle, free_middle = (v.mean(axis=CHANNEL, keepdims=True) for v in (x0, free))
    deviation = x0 - middle
    limit, goal = (quantile(v, ratio, CHANNEL) for v in (deviation, free - free_middle))
    clipped = middle + np.clip(deviation, -limit, limit) * (goal / np.maximum(limit, 1e-12))
    out: Array = np.where(limit > goal, clipped, x0)
    return out.astype(x0.dtype, copy=False)


def quantile(values: Array, ratio: float, axes: tuple[int, ...]) -> Array:
    """Of the absolute values along ``axes``, which stay with length 1; in the dtype of ``values``."""
    out: Array = np.quantile(np.abs(values), ratio, axis=axes, keepdims=True)
    return out.astype(values.dtype, copy=False)


def combiner(
    plan: Plan,
    method: str | Apg = "cfg",
    guidance_rescale: float = 0.0,
    dynamic_thresholding_ratio: float | None = None,
    on_x0: Hook | None = None,
) -> Combine | None:
    """What a run does between the halves of its rows; None when plain rows do it all. Fresh for every run."""
    apg = Apg() if method == "apg" else method if isinstance(method, Apg) else None
    if apg is None and not guidance_rescale and dynamic_thresholding_ratio is None and on_x0 is None:
        return None
    if not plan.mergeable:
        raise ArgumentError(
            f"guidance {plan.guidance} cannot be combined with guidance_rescale, dynamic thresholding or a hook on x0; "
            "use cfg or apg"
        )
    first = apg.start() if apg else None

    def combine(row: Row, x: Array, u: Array | None, c: Array) -> Array:
        m = first(row, x, u, c) if first else guide(row, u, c)
        if guidance_rescale and u is not None:
            m = rescale(m, c, guidance_rescale)
        if dynamic_thresholding_ratio is not None and u is not None:
            x0, free = (estimate(row, x, None, out) for out in (m, c))
            m = _output(row, x, latent_threshold(x0, free, dynamic_thresholding_ratio))
        if on_x0 is not None:
            x0 = estimate(row, x, None, m)
            m = _output(row, x, _checked(on_x0(x0), x0))
        return m

    return combine


def _checked(changed: Any, x0: Array) -> Array:
    """What a hook gave, in the type of ``x0``."""
    if not isinstance(changed, np.ndarray) or changed.shape != x0.shape or changed.dtype.kind not in "fiu":
        kind = f"{changed.dtype}{changed.shape}" if isinstance(changed, np.ndarray) else type(changed).__name__
        raise ArgumentError(f"on_x0 gave {kind}; it must give {x0.dtype}{x0.shape}")
    out = changed.astype(x0.dtype, copy=False)
    if not np.isfinite(out).all():
        raise ArgumentError("on_x0 gave values that are not finite")
    return out


def _dot(a: Array, b: Array) -> Array:
    """Per image, in float64, (B, 1, 1, 1)."""
    out: Array = np.sum(a.astype(np.float64) * b, axis=IMAGE, keepdims=True)
    return out


def _output(row: Row, x: Array, x0: Array) -> Array:
    """The model output that would have given ``x0``."""
    out: Array = (x0 - row.x0_x * x) / row.x0_m
    return out
