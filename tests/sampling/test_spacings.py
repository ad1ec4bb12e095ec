"""Spacings: closed forms, k-diffusion's and published numbers, and what is refused."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest

from edgediff import ArgumentError, Schedule
from edgediff.sampling.planning import plan
from edgediff.sampling.schedule import SPACINGS
from edgediff.sampling.spacings import MAX_STEPS, from_sigmas, from_timesteps, spaced

FLOW = Schedule(prediction_type="flow_prediction")


def ts(schedule: Schedule, steps: int, spacing: str, **options: bool) -> list[float]:
    return [level.t for level in spaced(schedule, steps, spacing, **options)]


def ratios(schedule: Schedule, steps: int, spacing: str) -> list[float]:
    return [level.ratio for level in spaced(schedule, steps, spacing, rounded=False)]


def test_of_timesteps() -> None:
    s = Schedule(steps_offset=1)
    assert ts(s, 4, "leading") == [751, 501, 251, 1]
    assert ts(s, 4, "trailing") == [999, 749, 499, 249]
    assert ts(s, 4, "linspace") == [999, 666, 333, 0]
    assert ts(s, 4, "linspace", drop_last=True) == [999, 749, 500, 250]
    assert ts(s, 7, "linspace", rounded=False)[1] == pytest.approx(832.5)
    assert ts(s, 4, "simple") == [999, 749, 499, 249]
    assert ts(s, 3, "simple") == [999, 666, 333]
    assert ts(s, 4, "normal") == pytest.approx([999, 666, 333, 0])
    assert ts(s, 4, "sgm_uniform") == pytest.approx([999, 749.25, 499.5, 249.75])
    assert ts(s, 4, "lcm") == [999, 759, 499, 259]


def test_karras_by_its_equation() -> None:
    low, high = Schedule().sigma_range
    expected = [(high ** (1 / 7) + i / 9 * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(10)]
    np.testing.assert_allclose(ratios(Schedule(), 10, "karras"), expected, rtol=1e-12)


def test_exponential_falls_evenly_in_log() -> None:
    low, high = Schedule().sigma_range
    got = np.log(ratios(Schedule(), 10, "exponential"))
    np.testing.assert_allclose(got, np.linspace(math.log(high), math.log(low), 10), rtol=1e-12)


def test_align_your_steps(diffusers: ModuleType) -> None:
    from diffusers.schedulers.scheduling_utils import AysSchedules

    published = AysSchedules["StableDiffusionSigmas"][:-1]
    np.testing.assert_allclose(ratios(Schedule(), 10, "ays"), [min(v, Schedule().sigma_range[1]) for v in published])
    # The authors' timesteps for the same list, which they rounded.
    rounded = np.abs(np.array(ts(Schedule(), 10, "ays")) - AysSchedules["StableDiffusionTimesteps"])
    assert rounded.max() <= 2
    np.testing.assert_allclose(ratios(Schedule(), 10, "ays_sdxl")[1:], AysSchedules["StableDiffusionXLSigmas"][1:-1])
    twenty = ratios(Schedule(), 20, "ays")
    np.testing.assert_allclose(twenty[::2][1:], published[1:], rtol=1e-12)
    assert twenty[3] == pytest.approx(math.sqrt(published[1] * published[2]))


def test_flow_spacings() -> None:
    for name in ("trailing", "simple", "sgm_uniform"):
        assert ts(FLOW, 4, name) == pytest.approx([1000, 750, 500, 250])
    shifted = Schedule(prediction_type="flow_prediction", shift=3.0)
    assert ts(shifted, 2, "trailing") == pytest.approx([1000, 750])
    assert ts(FLOW, 3, "karras")[0] == pytest.approx(1000)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("schedule", [Schedule(steps_offset=1), Schedule(rescale_betas_zero_snr=True), FLOW])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("rounded", [False, True])
def test_levels_fall_and_stay_inside(schedule: Schedule, spacing: str, drop_last: bool, rounded: bool) -> None:
    for steps in (1, 2, 3, 7, 20, 30, 50, 333, 999):
        try:
            levels = spaced(schedule, steps, spacing, drop_last=drop_last, rounded=rounded)
        except ArgumentError:
            assert (
                (spacing == "lcm" and (steps > 50 or schedule.flow))
                or (schedule.flow and spacing in ("leading", "ays", "ays_sdxl"))
                or (schedule.rescale_betas_zero_snr and spacing in ("karras", "exponential"))
            )
            continue
        assert len(levels) == steps
        assert (np.diff([level.sigma for level in levels]) < 0).all()
        assert (np.diff([level.t for level in levels]) <= 0).all()
        assert levels[-1].t >= 0
        assert levels[0].t <= (1000 if schedule.flow else 999)
        assert levels[-1].sigma > 0


def test_rounded_tells_whole_timesteps_of_exact_levels() -> None:
    exact, told = (spaced(Schedule(), 10, "karras", rounded=r) for r in (False, True))
    for a, b in zip(exact, told, strict=True):
        assert (a.alpha, a.sigma) == (b.alpha, b.sigma)
        assert b.t == round(a.t)


def test_leading_offset_never_passes_the_last_timestep() -> None:
    assert [ts(Schedule(steps_offset=1), 1000, "leading")[k] for k in (0, -1)] == [999, 0]


@pytest.mark.parametrize("steps", [0, -3, 1001, 2.0, True])
def test_bad_steps(steps: object) -> None:
    with pytest.raises(ArgumentError, match="num_inference_steps is"):
        spaced(Schedule(), steps, "trailing")  # type: ignore[arg-type]


def test_a_spacing_that_cannot_serve() -> None:
    with pytest.raises(ArgumentError, match="no spacing 'tight'; choose from leading"):
        spaced(Schedule(), 5, "tight")
    with pytest.raises(ArgumentError, match=r"1 \.\. 50"):
        spaced(Schedule(), 51, "lcm")
    short = Schedule(num_train_timesteps=20, beta_schedule="squaredcos_cap_v2")
    with pytest.raises(ArgumentError, match="needs at least 50 trained timesteps; this model has 20"):
        spaced(short, 4, "lcm")
    with pytest.raises(ArgumentError, match="ends in pure noise; choose from leading, trailing"):
        spaced(Schedule(rescale_betas_zero_snr=True), 5, "karras")
    with pytest.raises(ArgumentError, match="leading cannot serve a flow-matching model; choose from trailing"):
        spaced(FLOW, 5, "leading")
    with pytest.raises(ArgumentError, match="ays cannot serve a flow-matching model"):
        spaced(FLOW, 5, "ays")


def test_explicit_levels() -> None:
    levels = from_timesteps(Schedule(), [999, 850, 24])
    assert [level.t for level in levels] == [999, 850, 24]
    assert levels[1] == Schedule().level(850)
    levels = from_sigmas(Schedule(), [14.6, 3.0, 0.5, 0.0])
    assert [level.ratio for level in levels] == pytest.approx([14.6, 3.0, 0.5])
    assert from_sigmas(FLOW, [1.0, 0.5])[1].t == 500
    assert from_timesteps(FLOW, [1000.0, 500.0])[0].alpha == 0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "finite numbers"),
        ([3.0, math.nan], "finite numbers"),
        ("abc", "finite numbers"),
        (5.0, "finite numbers"),
        ([[3.0]], "finite numbers"),
        ([3.0, 3.0], "less than the one before"),
        ([1.0, 3.0], "less than the one before"),
        ([0.0], "above 0"),
        ([20.0, 3.0], "at most at 14.6146"),
        ([3.0, -1.0], "above 0"),
    ],
)
def test_bad_sigmas(values: object, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        from_sigmas(Schedule(), values)  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [[1000.0, 5.0], [5.0, -1.0]])
def test_bad_timesteps(values: list[float]) -> None:
    with pytest.raises(ArgumentError, match=r"they must lie in 0 \.\. 999"):
        from_timesteps(Schedule(), values)


def test_no_run_is_longer_than_anybody_waits() -> None:
    """A table of 1,000,000 steps is seconds of work, and a gigabyte."""
    long = Schedule(num_train_timesteps=1_000_000, beta_start=1e-6, beta_end=2e-5)
    with pytest.raises(ArgumentError, match=rf"num_inference_steps is 100000; it must be 1 \.\. {MAX_STEPS}"):
        plan(long, "deis_3", 100_000)
    levels = [1_000_000 - k for k in range(1, MAX_STEPS + 2)]
    with pytest.raises(ArgumentError, match=f"timesteps are {MAX_STEPS + 1} numbers; there may be at most {MAX_STEPS}"):
        plan(long, "ddim", timesteps=levels)
    assert plan(long, "ddim", MAX_STEPS).intervals == MAX_STEPS
