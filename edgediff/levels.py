"""Noise levels: ``x = alpha * x0 + sigma * noise`` with ``alpha**2 + sigma**2 = 1``, from a model's schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from .errors import ArgumentError, choices

Float64 = NDArray[np.float64]


def _linear(start: float, end: float, n: int) -> Float64:
    return np.linspace(start, end, n, dtype=np.float64)


def _scaled_linear(start: float, end: float, n: int) -> Float64:
    betas: Float64 = np.linspace(start**0.5, end**0.5, n, dtype=np.float64) ** 2
    return betas


def _cosine(start: float, end: float, n: int) -> Float64:
    """Nichol & Dhariwal 2021, equation 17; capped at 0.999. It has no start and end."""
    t = np.linspace(0.0, 1.0, n + 1)
    bar = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    betas: Float64 = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    return betas


BETAS: dict[str, Callable[[float, float, int], Float64]] = {
    "linear": _linear,  # Ho et al. 2020
    "scaled_linear": _scaled_linear,  # Stable Diffusion: linear in sqrt(beta)
    "squaredcos_cap_v2": _cosine,
}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = ("leading", "trailing", "linspace")


@dataclass(frozen=True)
class Level:
    """One noise level. ``t`` is what the model is told (0 .. num_train_timesteps - 1, may be fractional)."""

    t: float
    alpha: float
    sigma: float

    @property
    def lam(self) -> float:
        """Half the log signal-to-noise ratio, ``log(alpha / sigma)``; infinite where sigma is 0."""
        return math.inf if self.sigma == 0 else math.log(self.alpha / self.sigma)


CLEAN = Level(0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Schedule:
    """A model's training schedule. Field names and meanings are those of diffusers' scheduler configs."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True

    def __post_init__(self) -> None:
        for value, name, known in (
            (self.beta_schedule, "beta_schedule", tuple(BETAS)),
            (self.prediction_type, "prediction_type", PREDICTIONS),
            (self.timestep_spacing, "timestep_spacing", SPACINGS),
        ):
            if value not in known:
                raise ArgumentError(f"no {name} {value!r}; choose from {choices(known)}")
        if not 1 <= self.num_train_timesteps <= 1_000_000:
            raise ArgumentError(f"num_train_timesteps is {self.num_train_timesteps}; it must be 1 .. 1000000")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ArgumentError(
                f"betas run from {self.beta_start} to {self.beta_end}; they must satisfy 0 < beta_start <= beta_end < 1"
            )

        if self.steps_offset < 0:
            raise ArgumentError(f"steps_offset is {self.steps_offset}; it must be at least 0")
        bar = self.alpha_bar
        if not (bar[-1] > 0 and bar[0] < 1):
            raise ArgumentError(
                f"the schedule runs from alpha_bar {bar[0]} to {bar[-1]} in float32; it must stay between 0 and 1"
            )

    @cached_property
    def alpha_bar(self) -> Float64:
        """``alpha**2`` at every training timestep, float64 (num_train_timesteps,)."""
        # Rounded to float32 where diffusers rounds: models were trained on these values, and near t = 0 the rounding
        # of 1 - beta moves sigma by 1e-5, which would show in a comparison.
        betas = BETAS[self.beta_schedule](self.beta_start, self.beta_end, self.num_train_timesteps)
        alphas = (np.float32(1) - betas.astype(np.float32)).astype(np.float64)
        return np.cumprod(alphas).astype(np.float32).astype(np.float64)

    @cached_property
    def _places(self) -> Float64:
        return np.arange(self.num_train_timesteps, dtype=np.float64)

    @cached_property
    def _ratios(self) -> Float64:
        ratios: Float64 = np.sqrt((1 - self.alpha_bar) / self.alpha_bar)
        return ratios

    def level(self, t: float) -> Level:
        """The level at ``t``; between timesteps sigma / alpha is interpolated linearly (k-diffusion's convention)."""
        ratio = float(np.interp(t, self._places, self._ratios))
        alpha = 1 / math.sqrt(1 + ratio * ratio)
        return Level(float(t), alpha, alpha * ratio)


def timesteps(
    schedule: Schedule, steps: int, spacing: str, *, drop_last: bool = False, rounded: bool = True
) -> Float64:
    """``steps`` timesteps from noisy to clean, float64 (steps,).

    ``drop_last`` spaces ``steps + 1`` points and leaves out the cleanest (the convention of the DPM-Solver family);
    ``rounded=False`` keeps linspace fractional (k-diffusion's). Lin et al. 2023, table 2, names the spacings.
    """
    total = schedule.num_train_timesteps
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)):
        raise ArgumentError(f"num_inference_steps is {steps!r}; it must be a whole number")
    limit = total - 1 if drop_last and spacing != "trailing" else total
    if not 1 <= steps <= limit:
        raise ArgumentError(f"num_inference_steps is {steps}; it must be 1 .. {limit} for this model and sampler")
    points = steps + 1 if drop_last else steps
    if spacing == "trailing":
        down: Float64 = np.round(np.arange(total, 0, -total / steps, dtype=np.float64))
        return down[:steps] - 1
    if spacing == "leading":
        up: Float64 = np.arange(points, dtype=np.float64) * (total // points) + schedule.steps_offset
    elif spacing == "linspace":
        up = np.linspace(0, total - 1, points, dtype=np.float64)
        up = np.round(up) if rounded else up
    else:
        raise ArgumentError(f"no spacing {spacing!r}; choose from {choices(SPACINGS)}")
    t = up[::-1][:steps]
    # An offset must not lead past the last trained timestep (as many steps as timesteps).
    return t - max(0.0, float(t[0]) - (total - 1))
