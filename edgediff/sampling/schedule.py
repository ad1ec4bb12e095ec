"""Noise levels ``x = alpha * x0 + sigma * noise`` of a model's training schedule.

Diffusion models keep the variance, ``alpha**2 + sigma**2 = 1``; flow-matching models go straight,
``alpha + sigma = 1``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..checks import one_of
from ..errors import ArgumentError, shown
from .schedule_fields import check_fields

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
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")
SpacingName = Literal[
    # of timesteps
    "leading",
    "trailing",
    "linspace",
    "simple",
    "normal",
    "sgm_uniform",
    # of noise levels
    "karras",
    "exponential",
    "ays",
    "ays_sdxl",
    # of a distillation's timesteps
    "lcm",
]
SPACINGS: tuple[str, ...] = get_args(SpacingName)


@dataclass(frozen=True)
class Level:
    """A level is how much of a picture and how much noise there is.

    ``t`` is what the model is told (0 .. num_train_timesteps, may be fractional).
    """

    t: float
    alpha: float
    sigma: float

    @property
    def lam(self) -> float:
        """Half the log signal-to-noise ratio, ``log(alpha / sigma)``; infinite without noise or without signal."""
        if self.sigma == 0:
            return math.inf
        return math.log(self.alpha / self.sigma) if self.alpha else -math.inf

    @property
    def ratio(self) -> float:
        """``sigma / alpha``, the noise level of k-diffusion's coordinates; infinite without signal."""
        return self.sigma / self.alpha if self.alpha else math.inf


CLEAN = Level(0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Schedule:
    """A schedule is what noise a model was trained on.

    Field names and meanings are those of diffusers' scheduler configs.

    With ``prediction_type`` flow_prediction it is the straight schedule of flow matching (sigma = t / T): ``shift``
    moves its spacings towards noise, and the betas mean nothing. ``rescale_betas_zero_snr`` (Lin et al. 2023,
    https://arxiv.org/abs/2305.08891, algorithm 1) makes the last timestep pure noise. ``timestep_spacing`` may be any
    of ``SPACINGS``; with ``use_karras_sigmas`` or ``use_exponential_sigmas`` noise levels are spaced so, and
    ``timestep_spacing`` says between which ends, for samplers of k-diffusion. DPM-Solver++ leaves out timesteps whose
    log signal-to-noise lambda lies below ``lambda_min_clipped``. ``lower_order_final`` is read by DEIS,
    ``original_inference_steps`` by LCM and TCD, ``timestep_scaling`` by LCM.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    rescale_betas_zero_snr: bool = False
    shift: float = 1.0
    use_karras_sigmas: bool = False
    use_exponential_sigmas: bool = False
    lambda_min_clipped: float | None = None
    lower_order_final: bool = True
    original_inference_steps: int = 50
    timestep_scaling: float = 10.0

    def __post_init__(self) -> None:
        for value, name, known in (
            (self.beta_schedule, "beta_schedule", tuple(BETAS)),
            (self.prediction_type, "prediction_type", PREDICTIONS),
            (self.timestep_spacing, "timestep_spacing", SPACINGS),
        ):
            one_of(name, value, known)
        check_fields(self)
        bar = self.alpha_bar
        lowest = bar[-2 if self.rescale_betas_zero_snr else -1]
        if not (lowest > 0 and bar[0] < 1):
            raise ArgumentError(
                f"the schedule runs from alpha_bar {bar[0]} to {lowest} in float32; it must stay between 0 and 1"
            )
        if self.lambda_min_clipped is not None and not self.clipped_timesteps:
            raise ArgumentError(
                f"lambda_min_clipped is {shown(self.lambda_min_clipped)}; it must be a number of at most "
                f"{-self._log_ratios[0]:.4g}, where this schedule is cleanest"
            )

    @property
    def flow(self) -> bool:
        """Whether this is a flow-matching model's straight schedule."""
        return self.prediction_type == "flow_prediction"

    @cached_property
    def alpha_bar(self) -> Float64:
        """``alpha**2`` at every training timestep, float64 (num_train_timesteps,)."""
        # Rounded to float32 where diffusers rounds: models were trained on these values, and near t = 0 the rounding
        # of 1 - beta moves sigma by 1e-5, which would show in a comparison.
        betas = BETAS[self.beta_schedule](self.beta_start, self.beta_end, self.num_train_timesteps).astype(np.float32)
        if self.rescale_betas_zero_snr:
            betas = _zero_terminal_snr(betas)
        return _running_product(np.float32(1) - betas).astype(np.float64)

    @property
    def sigma_spacing(self) -> str | None:
        """The spacing of noise levels that the model's own scheduler uses; None where it spaces timesteps."""
        return "karras" if self.use_karras_sigmas else "exponential" if self.use_exponential_sigmas else None

    @cached_property
    def clipped_timesteps(self) -> int:
        """How many timesteps, from the cleanest, ``lambda_min_clipped`` leaves."""
        if self.lambda_min_clipped is None:
            return self.num_train_timesteps
        return int((-self._log_ratios >= self.lambda_min_clipped).sum())

    @cached_property
    def _places(self) -> Float64:
        return np.arange(self.num_train_timesteps, dtype=np.float64)

    @cached_property
    def _ratios(self) -> Float64:
        with np.errstate(divide="ignore"):
            ratios: Float64 = np.sqrt((1 - self.alpha_bar) / self.alpha_bar)
        return ratios

    @cached_property
    def _log_ratios(self) -> Float64:
        logs: Float64 = np.log(self._ratios)
        return logs

    def level(self, t: float, *, log: bool = False) -> Level:
        """The level at ``t``. Between timesteps sigma / alpha is interpolated linearly, as diffusers does, or its
        logarithm, as k-diffusion does.
        """
        if self.flow:
            sigma = t / self.num_train_timesteps
            return Level(float(t), 1 - sigma, sigma)
        ratio = float(np.interp(t, self._places, self._log_ratios if log else self._ratios))
        return self._level(t, math.exp(ratio) if log else ratio)

    def from_ratio(self, ratio: float) -> Level:
        """The level with this sigma / alpha; its ``t`` by k-diffusion's interpolation of the logarithm."""
        if self.flow:
            return self.from_sigma(1.0 if math.isinf(ratio) else ratio / (1 + ratio))
        if math.isinf(ratio):
            return self._level(self.num_train_timesteps - 1, ratio)
        t = np.interp(math.log(ratio), self._log_ratios, self._places) if ratio else 0.0
        return self._level(float(t), ratio)

    def from_sigma(self, sigma: float) -> Level:
        """The level of a noise level as the field writes it: sigma / alpha, or a flow model's sigma itself."""
        if self.flow:
            return Level(sigma * self.num_train_timesteps, 1 - sigma, sigma)
        return self.from_ratio(sigma)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The least and the greatest trained noise level, as ``from_sigma`` takes them; the latter may be infinite."""
        if self.flow:
            return self.shifted(1 / self.num_train_timesteps), 1.0
        return float(self._ratios[0]), float(self._ratios[-1])

    def shifted(self, sigma: float) -> float:
        """A flow model's sigma moved by ``shift`` (Esser et al. 2024, https://arxiv.org/abs/2403.03206, eq. 23)."""
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)

    def _level(self, t: float, ratio: float) -> Level:
        if math.isinf(ratio):
            return Level(float(t), 0.0, 1.0)
        alpha = 1 / math.sqrt(1 + ratio * ratio)
        return Level(float(t), alpha, alpha * ratio)


def _running_product(alphas: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.cumprod(alphas.astype(np.float64)).astype(np.float32)


def _zero_terminal_snr(betas: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale sqrt(alpha_bar) so that it ends at 0 and begins where it began, in float32 as diffusers does."""
    root = np.sqrt(_running_product(np.float32(1) - betas))
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    bar = root**2
    out: NDArray[np.float32] = np.float32(1) - np.concatenate([bar[:1], bar[1:] / bar[:-1]])
    return out
