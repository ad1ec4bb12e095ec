"""Rows: the property that makes a sampler exact, guidance folded in, and the update against plain arithmetic."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from edgediff import ArgumentError, Schedule, plan
from edgediff.levels import PREDICTIONS, SPACINGS
from edgediff.loop import run
from edgediff.samplers import SAMPLERS
from edgediff.table import estimate, update, x0_from

CASES = list(product(SAMPLERS, PREDICTIONS, SPACINGS))


def model_output(prediction: str, alpha: float, sigma: float, x0: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """What a perfect model says of ``alpha*x0 + sigma*noise``: each prediction type by its definition."""
    return {"epsilon": noise, "sample": x0, "v_prediction": alpha * noise - sigma * x0}[prediction]


@pytest.mark.parametrize(("sampler", "prediction", "spacing"), CASES)
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_signal_kept_noise_kept(sampler: str, prediction: str, spacing: str, steps: int) -> None:
    """With exact outputs x' = alpha'*x0 + sigma''*noise + d*n, where sigma''^2 + d^2 = sigma'^2, at every step."""
    table = plan(Schedule(prediction_type=prediction), sampler, steps, 1.0, spacing)
    # x0 and noise as the two axes of a plane: coefficients can be read off the state.
    x0, noise = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert len(table.levels) == steps + 1
    history: list[np.ndarray] = []
    for row, now, to in zip(table.rows, table.levels, table.levels[1:], strict=False):
        x = now.alpha * x0 + now.sigma * noise
        m = model_output(prediction, now.alpha, now.sigma, x0, noise)
        after = update(row, x, None, m, history, np.zeros(2))
        signal, kept = after
        assert signal == pytest.approx(to.alpha, rel=1e-9)
        assert math.hypot(kept, row.d) == pytest.approx(to.sigma, rel=1e-9, abs=1e-9)
        history.insert(0, estimate(row, x, None, m))
        np.testing.assert_allclose(history[0], x0, atol=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_x0_from(prediction: str) -> None:
    level = Schedule().level(600)
    x0, noise = np.array([0.3, -2.0]), np.array([1.1, 0.4])
    p, q = x0_from(prediction, level)
    m = model_output(prediction, level.alpha, level.sigma, x0, noise)
    np.testing.assert_allclose(p * (level.alpha * x0 + level.sigma * noise) + q * m, x0, rtol=1e-12)


@pytest.mark.parametrize(("sampler", "prediction", "spacing"), CASES)
def test_guidance_is_folded_in(sampler: str, prediction: str, spacing: str) -> None:
    """The guided row on (u, c) equals the unguided row on u + g*(c - u)."""
    schedule, rng = Schedule(prediction_type=prediction), np.random.default_rng(0)
    guided, plain = (plan(schedule, sampler, 5, g, spacing) for g in (6.5, 1.0))
    x, u, c, n, h = rng.standard_normal((5, 2, 4, 3, 3))
    for a, b in zip(guided.rows, plain.rows, strict=True):
        assert a.guided
        assert not b.guided
        m = u + 6.5 * (c - u)
        np.testing.assert_allclose(update(a, x, u, c, [h], n), update(b, x, None, m, [h], n), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(estimate(a, x, u, c), estimate(b, x, None, m), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.0])
def test_no_guidance_at_one_and_below(scale: float) -> None:
    assert not any(row.guided or row.bu or row.qu for row in plan(Schedule(), "ddim", 4, scale).rows)


def test_float32_stays_float32() -> None:
    x = np.ones((1, 4, 2, 2), np.float32)
    for sampler in SAMPLERS:
        for row in plan(Schedule(), sampler, 3, 7.5).rows:
            assert update(row, x, x, x, [x], x).dtype == np.float32
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
    assert counts == {"ddim": 0, "euler": 0, "euler_a": 5, "dpmpp_2m": 0}


def test_a_noisy_row_without_noise_raises() -> None:
    with pytest.raises(ArgumentError, match="none was given"):
        update(plan(Schedule(), "euler_a", 4, 1.0).rows[0], np.ones(1), None, np.ones(1))


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, "7", None, True])
def test_bad_guidance(scale: object) -> None:
    with pytest.raises(ArgumentError, match="guidance_scale is"):
        plan(Schedule(), "ddim", 4, scale)  # type: ignore[arg-type]


def test_bad_names() -> None:
    with pytest.raises(ArgumentError, match="no sampler 'plmss'; choose from ddim, euler"):
        plan(Schedule(), "plmss", 4)
    with pytest.raises(ArgumentError, match="no spacing 'tight'; choose from leading"):
        plan(Schedule(), "ddim", 4, 1.0, "tight")


def test_printed_table() -> None:
    text = str(plan(Schedule(), "dpmpp_2m", 3, 7.5)).splitlines()
    assert len(text) == 4
    assert text[0].split() == ["step", "t", "alpha", "sigma", "a", "bu", "bc", "w0", "d", "p", "qu", "qc"]
    assert len({len(line) for line in text}) == 1
