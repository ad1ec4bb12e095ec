"""Schedules: closed forms, diffusers' own numbers, and what is refused."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest

from edgediff import ArgumentError, Schedule
from edgediff.sampling.schedule import BETAS, CLEAN


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("zero", [False, True])
def test_levels_keep_the_variance(betas: str, zero: bool) -> None:
    schedule = Schedule(beta_schedule=betas, rescale_betas_zero_snr=zero)
    assert schedule.alpha_bar.shape == (1000,)
    assert (np.diff(schedule.alpha_bar) < 0).all()
    for t in (0, 1, 499.5, 998, 999):
        for log in (False, True):
            level = schedule.level(t, log=log)
            assert level.alpha**2 + level.sigma**2 == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("zero", [False, True])
def test_alpha_bar_is_diffusers(diffusers: ModuleType, betas: str, zero: bool) -> None:
    config = {"beta_schedule": betas, "beta_start": 0.00085, "beta_end": 0.012, "rescale_betas_zero_snr": zero}
    expected = diffusers.DDIMScheduler(**config).alphas_cumprod.numpy()
    # Near the end of a rescaled schedule differences of float32 cancel all but a few digits.
    np.testing.assert_allclose(Schedule(**config).alpha_bar, expected, rtol=2e-6, atol=1e-10 if zero else 0)


def test_zero_terminal_snr() -> None:
    schedule = Schedule(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert schedule.level(999).alpha == 0
    assert schedule.level(999).sigma == 1
    assert schedule.level(999).lam == -math.inf
    assert math.isinf(schedule.sigma_range[1])
    assert schedule.level(0).alpha == pytest.approx(Schedule().level(0).alpha, rel=1e-6)


def test_stable_diffusion_values() -> None:
    # Known of SD 1.5: alpha_bar ends at 0.00466, k-diffusion's sigma_max is 14.6146 and sigma_min 0.0292.
    assert Schedule().alpha_bar[-1] == pytest.approx(0.0046603, rel=1e-4)
    low, high = Schedule().sigma_range
    assert high == pytest.approx(14.6146, rel=1e-5)
    assert low == pytest.approx(0.029167, rel=1e-4)


@pytest.mark.parametrize("t", [0, 0.25, 17.5, 640, 998.75, 999])
def test_ratio_and_timestep_are_inverse(t: float) -> None:
    level = Schedule().level(t, log=True)
    again = Schedule().from_ratio(level.ratio)
    assert again.t == pytest.approx(t, abs=1e-6)
    assert again.sigma == pytest.approx(level.sigma, rel=1e-12)
    assert Schedule().from_sigma(level.ratio) == again


def test_between_timesteps() -> None:
    """Half way: the mean of sigma / alpha, or of its logarithm."""
    below, above = (Schedule().level(t).ratio for t in (700, 701))
    assert Schedule().level(700.5).ratio == pytest.approx((below + above) / 2, rel=1e-12)
    assert Schedule().level(700.5, log=True).ratio == pytest.approx(math.sqrt(below * above), rel=1e-12)


def test_flow_matching_is_straight() -> None:
    schedule = Schedule(prediction_type="flow_prediction", shift=3.0)
    level = schedule.level(250)
    assert (level.alpha, level.sigma, level.t) == (0.75, 0.25, 250)
    assert schedule.from_sigma(0.25) == level
    assert schedule.from_ratio(level.ratio).t == pytest.approx(250)
    assert schedule.shifted(0.5) == pytest.approx(0.75)
    assert schedule.sigma_range == (pytest.approx(0.003 / 1.002), 1.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beta_schedule", "cubic"),
        ("prediction_type", "noise"),
        ("timestep_spacing", "tight"),
        ("num_train_timesteps", 0),
        ("num_train_timesteps", 1),
        ("beta_end", 1.5),
        ("beta_start", 1e-12),
        ("num_train_timesteps", 100_000),
        ("steps_offset", -5),
        ("shift", 0.0),
        ("shift", math.nan),
        ("lambda_min_clipped", 20.0),
        ("lambda_min_clipped", math.nan),
        ("original_inference_steps", 0),
        ("timestep_scaling", 0.0),
        ("timestep_scaling", math.inf),
    ],
)
def test_bad_schedule(field: str, value: object) -> None:
    with pytest.raises(ArgumentError):
        Schedule(**{field: value})  # type: ignore[arg-type]


def test_clean_level() -> None:
    assert math.isinf(CLEAN.lam)
    assert CLEAN.ratio == 0
