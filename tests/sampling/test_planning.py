"""Rows: the property that makes a sampler exact, guidance folded in, and the update against plain arithmetic."""

from __future__ import annotations

import math
from itertools import pairwise, product

import numpy as np
import pytest

from edgediff import ArgumentError, Schedule, plan
from edgediff.sampling.loop import Between, run
from edgediff.sampling.planning import Plan, x0_from
from edgediff.sampling.samplers import SAMPLERS
from edgediff.sampling.schedule import PREDICTIONS
from edgediff.sampling.update import Row, estimate, remember, update

SPACED = ("leading", "trailing", "linspace", "karras", "exponential", "ays", "normal", "simple", "lcm")
CASES = list(product(SAMPLERS, PREDICTIONS))


def model_output(prediction: str, alpha: float, sigma: float, x0: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """What a perfect model says of ``alpha*x0 + sigma*noise``: each prediction type by its definition."""
    return {
        "epsilon": noise,
        "sample": x0,
        "v_prediction": alpha * noise - sigma * x0,
        "flow_prediction": noise - x0,
    }[prediction]


def signal_and_noise(table: Plan, prediction: str) -> float:
    """Largest departure over a run with a perfect model from ``x = alpha*x0 + sigma*noise`` with unit noise.

    x0, the first noise and every fresh one are the axes of a space, so that coefficients can be read off the state:
    x' must hold alpha' of x0, and all its noise together must have norm sigma' (for one row: sigma''^2 + d^2 =
    sigma'^2, the fresh noise of earlier rows included where two stages share a path). (alpha', sigma') is what the row
    says of the level it leads to, where the next row begins.
    """
    axes = np.eye(len(table.rows) + 2)
    x0, fresh = axes[0], iter(axes[2:])
    x = table.levels[0].alpha * x0 + table.levels[0].sigma * axes[1]
    history: list[np.ndarray] = []
    worst = 0.0
    for row, now, to in zip(table.rows, table.levels, table.levels[1:], strict=False):
        m = model_output(prediction, now.alpha, now.sigma, x0, (x - now.alpha * x0) / now.sigma)
        np.testing.assert_allclose(estimate(row, x, None, m), x0, atol=1e-9)
        after = update(row, x, None, m, history, next(fresh))
        history.insert(0, remember(row, x, None, m))
        worst = max(worst, abs(after[0] - row.ka), abs(float(np.linalg.norm(after[1:])) - row.ks))
        assert (row.ka, row.ks) == (to.alpha, to.sigma)
        x = after
    return worst


@pytest.mark.parametrize(("sampler", "prediction"), CASES)
@pytest.mark.parametrize("spacing", SPACED)
def test_signal_kept_noise_kept(sampler: str, prediction: str, spacing: str) -> None:
    for steps, zero in product((1, 2, 3, 5, 14, 20), (False, True)):
        schedule = Schedule(prediction_type=prediction, rescale_betas_zero_snr=zero)
        try:
            table = plan(schedule, sampler, steps, 1.0, spacing)
        except ArgumentError:
            assert (zero and (prediction == "epsilon" or spacing in ("karras", "exponential"))) or (
                prediction == "flow_prediction" and spacing in ("leading", "ays", "lcm")
            )
            continue
        assert len(table.levels) == len(table.rows) + 1
        assert table.intervals == steps
        # LCM's boundary condition takes back a little noise at small t, and at t = 0 all that is there.
        skip = 1 / ((table.levels[-2].t * 20) ** 2 + 1)
        assert signal_and_noise(table, prediction) < (1e-8 if sampler != "lcm" else 1e-9 + skip)


@pytest.mark.parametrize("sampler", [name for name, other in SAMPLERS.items() if other.eta])
@pytest.mark.parametrize("eta", [0.0, 0.02, 0.35, 1.0])
@pytest.mark.parametrize("spacing", SPACED)
def test_eta_keeps_signal_and_noise(sampler: str, eta: float, spacing: str) -> None:
    for steps in (8, 40):
        table = plan(Schedule(), sampler, steps, 1.0, spacing, eta=eta)
        assert signal_and_noise(table, "epsilon") < 1e-8
        assert table.stochastic == (eta > 0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("sampler", sorted(SAMPLERS.keys() - {"ddpm", "lcm"}))  # which cannot do without fresh noise
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_a_row_says_which_level_it_leads_to(sampler: str, prediction: str, scale: float) -> None:
    """A perfect model's run without fresh noise is ``ka*x0 + ks*noise`` after every row, stages between levels too."""
    schedule = Schedule(prediction_type=prediction)
    spacing = "trailing" if prediction == "flow_prediction" else None
    table = plan(schedule, sampler, 9, scale, spacing, **({"eta": 0.0} if SAMPLERS[sampler].eta else {}))
    assert all(type(v) is float for row in table.rows for v in (row.ka, row.ks))  # float32 arrays stay float32
    assert not table.stochastic
    x0, noise = np.random.default_rng(0).standard_normal((2, 4, 3))
    x, history = table.levels[0].alpha * x0 + table.levels[0].sigma * noise, []
    for row, now in zip(table.rows, table.levels, strict=False):
        m = model_output(prediction, now.alpha, now.sigma, x0, noise)
        x, h = update(row, x, m if row.guided else None, m, history), remember(row, x, m if row.guided else None, m)
        history.insert(0, h)
        np.testing.assert_allclose(x, row.ka * x0 + row.ks * noise, rtol=0, atol=1e-9)
    assert (table.rows[-1].ka, table.rows[-1].ks) == (table.levels[-1].alpha, table.levels[-1].sigma)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_blend_between_rows(scale: float) -> None:
    """DDIM scales what departs from a perfect model's path by sigma'/sigma, and the mask by itself; what the blends add
    can be summed up by hand.
    """
    table, rng = plan(Schedule(), "ddim", 7, scale), np.random.default_rng(0)
    x0, noise, z0, n0, mask = rng.standard_normal((5, 4, 6))
    mask = np.clip(mask + 0.5, 0, 1)
    assert {0.0, 1.0} < {*mask.flat}
    levels = iter(table.levels)
    seen = []

    def denoise(x: np.ndarray, t: float, guided: bool) -> tuple[np.ndarray | None, np.ndarray]:
        level = next(levels)
        assert level.t == t
        m = (x - level.alpha * x0) / level.sigma
        return (m if guided else None), m

    def between(index: int, row: Row, x: np.ndarray) -> np.ndarray:
        seen.append((index, row))
        return mask * x + (1 - mask) * (row.ka * z0 + row.ks * n0)

    start = table.levels[0].alpha * x0 + table.levels[0].sigma * noise
    steps = list(run(table, denoise, start, lambda: noise, between=between))
    assert seen == list(enumerate(table.rows))
    for k, step in enumerate(steps, 1):
        to = table.levels[k]
        expected = to.alpha * x0 + to.sigma * noise
        for j in range(1, k + 1):
            at = table.levels[j]
            apart = at.alpha * (z0 - x0) + at.sigma * (n0 - noise)
            expected += mask ** (k - j) * (1 - mask) * apart * (to.sigma / at.sigma if j < k else 1)
        np.testing.assert_allclose(step.after, expected, rtol=0, atol=1e-9)
    for step, later in pairwise(steps):
        assert later.before is step.after
    np.testing.assert_allclose(steps[-1].after, mask * x0 + (1 - mask) * z0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_mask_holds_one_part_and_leaves_the_other(sampler: str) -> None:
    """To the bit, with every sampler's history, where the model looks at each value alone."""
    table = plan(Schedule(), sampler, 6, 5.0)
    x, z0, n0 = np.random.default_rng(1).standard_normal((3, 2, 5), np.float32)
    mask = np.array([[1], [0]], np.float32)

    def after(between: Between | None) -> list[np.ndarray]:
        rng = np.random.default_rng(2)
        steps = run(
            table,
            lambda x, t, guided: (0.2 * x, np.tanh(x)),
            x,
            lambda: rng.standard_normal((2, 5), np.float32),
            between=between,
        )
        return [step.after for step in steps]

    free, same = after(None), after(lambda index, row, x: x)
    masked = after(lambda index, row, x: mask * x + (1 - mask) * (row.ka * z0 + row.ks * n0))
    for k, row in enumerate(table.rows):
        np.testing.assert_array_equal(same[k], free[k])
        np.testing.assert_array_equal(masked[k][0], free[k][0])
        np.testing.assert_array_equal(masked[k][1], row.ka * z0[1] + row.ks * n0[1])
        assert masked[k].dtype == np.float32


def test_first_step_from_pure_noise() -> None:
    """At zero terminal SNR the v output is -x0, and every sampler's first state is DDIM's."""
    schedule = Schedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    x, v = np.random.default_rng(0).standard_normal((2, 5))
    for sampler in SAMPLERS:
        table = plan(schedule, sampler, 6, 1.0, "trailing", **({"eta": 0.0} if SAMPLERS[sampler].eta else {}))
        assert table.levels[0].alpha == 0
        if table.rows[0].d == 0:
            to = table.levels[1]
            np.testing.assert_allclose(update(table.rows[0], x, None, v), -to.alpha * v + to.sigma * x, rtol=1e-12)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_epsilon_cannot_start_from_pure_noise(spacing: str) -> None:
    schedule = Schedule(rescale_betas_zero_snr=True)
    with pytest.raises(ArgumentError, match=r"pure noise \(zero terminal SNR\).*leading"):
        plan(schedule, "ddim", 5, 1.0, spacing)
    assert plan(schedule, "ddim", 5, 1.0, "leading").levels[0].alpha > 0


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_x0_from(prediction: str) -> None:
    level = Schedule(prediction_type=prediction).level(600)
    x0, noise = np.array([0.3, -2.0]), np.array([1.1, 0.4])
    p, q = x0_from(prediction, level)
    m = model_output(prediction, level.alpha, level.sigma, x0, noise)
    np.testing.assert_allclose(p * (level.alpha * x0 + level.sigma * noise) + q * m, x0, rtol=1e-12)


@pytest.mark.parametrize(("sampler", "prediction"), CASES)
def test_guidance_is_folded_in(sampler: str, prediction: str) -> None:
    """The guided row on (u, c) equals the unguided row on u + g*(c - u)."""
    schedule, rng = Schedule(prediction_type=prediction), np.random.default_rng(0)
    spacing = None if prediction != "flow_prediction" else "trailing"
    guided, plain = (plan(schedule, sampler, 5, g, spacing) for g in (6.5, 1.0))
    x, u, c, n, *h = rng.standard_normal((8, 2, 4, 3, 3))
    for a, b in zip(guided.rows, plain.rows, strict=True):
        assert a.guided
        assert not b.guided
        m = u + 6.5 * (c - u)
        for got, expected in (
            (update(a, x, u, c, h, n), update(b, x, None, m, h, n)),
            (remember(a, x, u, c), remember(b, x, None, m)),
            (estimate(a, x, u, c), estimate(b, x, None, m)),
            (update(a.merged(), x, None, m, h, n), update(b, x, None, m, h, n)),
        ):
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)


def test_guidance_interval() -> None:
    """Outside of it there is no unconditional half, and the row is the unguided one."""
    whole, off, some = (
        plan(Schedule(), "dpmpp_2m", 10, g, guidance_interval=i)
        for g, i in ((5.0, None), (1.0, None), (5.0, (0.2, 0.7)))
    )
    assert [row.guided for row in some.rows] == [False] * 2 + [True] * 5 + [False] * 3
    assert all(row == (whole if row.guided else off).rows[k] for k, row in enumerate(some.rows))
    assert whole.guided
    assert some.guided
    assert not plan(Schedule(), "ddim", 10, 5.0, guidance_interval=(0.3, 0.3)).guided


@pytest.mark.parametrize(
    ("steps", "interval", "guided"),
    [(3, (0.5, 1), [2]), (5, (0.5, 1), [3, 4]), (2, (0.4, 0.6), [0]), (1, (0, 0.5), [0]), (20, (0.475, 0.525), [10])],
)
def test_interval_rounding(steps: int, interval: tuple[float, float], guided: list[int]) -> None:
    """To the nearest step, halves up; an interval shorter than a step is the step it begins in."""
    rows = plan(Schedule(), "ddim", steps, 5.0, guidance_interval=interval).rows
    assert [k for k, row in enumerate(rows) if row.guided] == guided


def test_interval_and_scale_count_steps_not_calls() -> None:
    table = plan(Schedule(), "heun", 4, [1.0, 3.0, 5.0, 7.0], guidance_interval=(0.0, 0.75))
    assert [row.scale for row in table.rows] == [1, 1, 3, 3, 5, 5, 1]
    assert [row.guided for row in table.rows] == [False, False, True, True, True, True, False]
    assert table.guidance_scale == (1.0, 3.0, 5.0, 7.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"guidance_scale": [3.0, 2.0]}, "has 2 values; 4 steps"),
        ({"guidance_scale": [3.0, 2.0, "x", 1.0]}, "guidance_scale is 'x'; it must be a number"),
        ({"guidance_interval": (0.5, 0.2)}, "must not stop before it starts"),
        ({"guidance_interval": (0.0, 1.2)}, r"guidance_interval is 1.2; it must be 0 \.\. 1"),
        ({"guidance_interval": 0.5}, r"it must be \(start, stop\)"),
        ({"eta": 1.5}, r"eta is 1.5; it must be 0 \.\. 1"),
        ({"sampler": "heun", "eta": 0.5}, "sampler heun takes no eta; these do: ddim, euler_a"),
        ({"timesteps": [900, 300], "sigmas": [3.0, 1.0]}, "were both given"),
        ({"spacing": ""}, "no spacing ''"),
        ({"sampler": "dpmpp_2m", "steps": None, "sigmas": [14.62, 14.619, 1.0]}, "are one noise level"),
        ({"timesteps": [900, 300]}, "num_inference_steps is 4, but 2 levels were given"),
    ],
)
def test_bad_arguments(arguments: dict, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        plan(Schedule(), **{"sampler": "ddim", "steps": 4, **arguments})


def test_the_schedulers_own_spacing_is_more_than_its_name() -> None:
    """What a model's scheduler does beside its spacing shows in the plan's, and goes when a call names the spacing."""
    karras = Schedule(timestep_spacing="leading", steps_offset=1, use_karras_sigmas=True)
    own, named = plan(karras, "euler", 5, 1.0), plan(karras, "euler", 5, 1.0, "karras")
    assert (own.spacing, named.spacing) == ("karras in leading", "karras")
    assert (own.levels[0].t, own.start) == (pytest.approx(801, abs=1e-6), 1.0)
    assert (named.levels[0].t, named.start) == (pytest.approx(999), named.levels[0].sigma)
    assert plan(karras, "dpmpp_2m", 5, 1.0).rows == plan(karras, "dpmpp_2m", 5, 1.0, "karras").rows
    linspace = Schedule(timestep_spacing="linspace")
    assert plan(linspace, "ddim", 6, 1.0).spacing == "linspace by 166"
    assert plan(linspace, "ddim", 6, 1.0, "linspace").spacing == "linspace"
    assert plan(Schedule(timestep_spacing="trailing"), "plms", 5, 1.0).spacing == "trailing"
    explicit = np.array([900.0, 500.0, 100.0])  # an array, too, names levels itself
    assert plan(karras, "euler", guidance_scale=1.0, timesteps=explicit).spacing == "custom"  # type: ignore[arg-type]


def test_clipped_timesteps() -> None:
    """Trailing spacing has fewer steps than were asked for; other samplers visit all."""
    schedule = Schedule(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing", lambda_min_clipped=-2.0)
    lowest = plan(schedule, "dpmpp_2m", 20, 1.0)
    assert lowest.levels[0].lam >= -2.0
    assert lowest.intervals == len(lowest.rows) < 20
    assert plan(schedule, "euler", 20, 1.0).intervals == 20


def test_explicit_levels() -> None:
    table = plan(Schedule(), "dpmpp_2m", timesteps=[999, 850, 736, 24])
    assert [row.t for row in table.rows] == [999, 850, 736, 24]
    assert table.spacing == "custom"
    assert table.levels[-1].sigma == 0
    assert plan(Schedule(), "euler", sigmas=[10.0, 2.0, 0.3]).levels[1].ratio == pytest.approx(2.0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_calls(sampler: str) -> None:
    """How often the U-Net is asked: 20 steps, and one more or nearly twice as often."""
    twice = ("heun", "dpm2", "dpm2_a", "dpmpp_2s_a", "dpmpp_sde")
    expected = 39 if sampler in twice else 21 if sampler == "plms" else 20
    assert len(plan(Schedule(), sampler, 20).rows) == expected


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0])
def test_no_guidance_at_one_and_below(scale: float) -> None:
    assert not any(row.guided or row.bu or row.qu for row in plan(Schedule(), "ddim", 4, scale).rows)


def test_samplers_say_whether_they_have_a_memory() -> None:
    for name, sampler in SAMPLERS.items():
        assert sampler.memoryless == (plan(Schedule(), name, 8, 1.0).depth == 0), name


def test_float32_stays_float32() -> None:
    x = np.ones((1, 4, 2, 2), np.float32)
    for sampler in SAMPLERS:
        for row in plan(Schedule(), sampler, 3, 7.5).rows:
            assert update(row, x, x, x, [x, x, x, x], x).dtype == np.float32
            assert remember(row, x, x, x).dtype == np.float32
            assert estimate(row, x, x, x).dtype == np.float32


def test_update_leaves_its_inputs_alone() -> None:
    row = plan(Schedule(), "dpmpp_2m", 3, 7.5).rows[1]
    arrays = np.random.default_rng(0).standard_normal((4, 1, 4, 2, 2))
    before = arrays.copy()
    update(row, arrays[0], arrays[1], arrays[2], [arrays[3]])
    np.testing.assert_array_equal(arrays, before)


def test_noise_is_asked_for_only_when_used() -> None:
    calls = 0

    def noise() -> np.ndarray:
        nonlocal calls
        calls += 1
        return np.zeros((1, 1))

    counts = {}
    for sampler in SAMPLERS:
        calls = 0
        list(run(plan(Schedule(), sampler, 6, 1.0), lambda x, t, g: (None, x), np.ones((1, 1)), noise))
        counts[sampler] = calls
    noisy = {name: count for name, count in counts.items() if count}
    one_a_step = ("ddpm", "euler_a", "dpm2_a", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_2s_a", "lcm")
    assert noisy == dict.fromkeys(one_a_step, 5) | {"dpmpp_sde": 10}


def test_a_noisy_row_without_noise_raises() -> None:
    with pytest.raises(ArgumentError, match="none was given"):
        update(plan(Schedule(), "euler_a", 4, 1.0).rows[0], np.ones(1), None, np.ones(1))


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, "7", None, True])
def test_bad_guidance(scale: object) -> None:
    with pytest.raises(ArgumentError, match="guidance_scale is"):
        plan(Schedule(), "ddim", 4, scale)  # type: ignore[arg-type]


def test_bad_names() -> None:
    with pytest.raises(ArgumentError, match="no sampler 'plmss'; choose from ddim, ddpm, euler"):
        plan(Schedule(), "plmss", 4)
    with pytest.raises(ArgumentError, match="no spacing 'tight'; choose from leading"):
        plan(Schedule(), "ddim", 4, 1.0, "tight")


def test_printed_table() -> None:
    text = str(plan(Schedule(), "dpmpp_2m", 3, 7.5)).splitlines()
    assert len(text) == 4
    assert text[0].split() == ["call", "t", "alpha", "sigma", "a", "bu", "bc", "w0", "d", "p", "qu", "qc"]
    assert len({len(line) for line in text}) == 1
