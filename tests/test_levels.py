"""Schedules and spacings: closed forms, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgediff import ArgumentError, Schedule
from edgediff.levels import BETAS, CLEAN, SPACINGS, timesteps


@pytest.mark.parametrize("betas", BETAS)
def test_levels_keep_the_variance(betas: str) -> None:
    schedule = Schedule(beta_schedule=betas)
    assert schedule.alpha_bar.shape == (1000,)
    assert (np.diff(schedule.alpha_bar) < 0).all()
    for t in (0, 1, 499.5, 998.25, 999):
        level = schedule.level(t)
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1, abs=1e-12)


def test_stable_diffusion_values() -> None:
    # Known of SD 1.5: alpha_bar ends at 0.00466, k-diffusion's sigma_max is 14.6146 and sigma_min 0.0292.
    bar = Schedule().alpha_bar
    assert bar[-1] == pytest.approx(0.0046603, rel=1e-4)
    assert math.sqrt((1 - bar[-1]) / bar[-1]) == pytest.approx(14.6146, rel=1e-5)
    assert math.sqrt((1 - bar[0]) / bar[0]) == pytest.approx(0.029167, rel=1e-4)


def test_spacings() -> None:
    s = Schedule(steps_offset=1)
    assert timesteps(s, 4, "leading").tolist() == [751, 501, 251, 1]
    assert timesteps(s, 4, "trailing").tolist() == [999, 749, 499, 249]
    assert timesteps(s, 4, "linspace").tolist() == [999, 666, 333, 0]
    assert timesteps(s, 4, "linspace", drop_last=True).tolist() == [999, 749, 500, 250]
    assert timesteps(s, 7, "linspace", rounded=False)[1] == pytest.approx(832.5)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("drop_last", [False, True])
def test_timesteps_fall_and_stay_inside(spacing: str, drop_last: bool) -> None:
    for steps in (1, 2, 3, 7, 20, 30, 333, 999):
        t = timesteps(Schedule(steps_offset=1), steps, spacing, drop_last=drop_last)
        assert len(t) == steps
        assert (np.diff(t) < 0).all()
        assert 0 <= t[-1] <= t[0] <= 999


def test_leading_offset_never_passes_the_last_timestep() -> None:
    assert timesteps(Schedule(steps_offset=1), 1000, "leading")[[0, -1]].tolist() == [999, 0]


@pytest.mark.parametrize("steps", [0, -3, 1001, 2.0, True])
def test_bad_steps(steps: object) -> None:
    with pytest.raises(ArgumentError, match="num_inference_steps is"):
        timesteps(Schedule(), steps, "trailing")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beta_schedule", "cubic"),
        ("prediction_type", "noise"),
        ("timestep_spacing", "tight"),
        ("num_train_timesteps", 0),
        ("beta_end", 1.5),
        ("beta_start", 1e-12),
        ("num_train_timesteps", 100_000),
        ("steps_offset", -5),
    ],
)
def test_bad_schedule(field: str, value: object) -> None:
    with pytest.raises(ArgumentError):
        Schedule(**{field: value})  # type: ignore[arg-type]


def test_clean_level() -> None:
    assert math.isinf(CLEAN.lam)
