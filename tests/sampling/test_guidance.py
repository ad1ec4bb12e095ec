"""Unfused guidance against diffusers' own functions and closed forms; CFG++ against its paper's two lines."""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import pytest

from edgediff import Apg, ArgumentError, Schedule, plan
from edgediff.sampling.guidance import combiner, latent_threshold, rescale
from edgediff.sampling.loop import run
from edgediff.sampling.samplers import SAMPLERS
from edgediff.sampling.update import estimate, guide, update

SHAPE = (3, 4, 6, 5)


def arrays(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *SHAPE))


def test_rescale_is_diffusers(torch: ModuleType, diffusers: ModuleType) -> None:
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    m, c = arrays(2)
    expected = rescale_noise_cfg(torch.from_numpy(3 * m), torch.from_numpy(c), 0.7).numpy()
    np.testing.assert_allclose(rescale(3 * m, c, 0.7), expected, rtol=1e-12)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    "settings", [Apg(norm_threshold=0.0), Apg(eta=0.3, norm_threshold=2.5, momentum=0.4), Apg(1.0, 0.0, 0.0)]
)
def test_apg_is_diffusers(torch: ModuleType, diffusers: ModuleType, prediction: str, settings: Apg) -> None:
    """On the x0 estimates, over several steps, so that the momentum shows."""
    from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

    table = plan(Schedule(prediction_type=prediction), "euler", 4, 6.0, "trailing")
    combine, buffer = settings.start(), MomentumBuffer(settings.momentum)
    for k, row in enumerate(table.rows):
        x, u, c = arrays(3, k)
        x0_u, x0_c = (torch.from_numpy(row.x0_x * x + row.x0_m * out) for out in (u, c))
        expected = normalized_guidance(
            x0_c, x0_u, 5.0, buffer, settings.eta, settings.norm_threshold, use_original_formulation=True
        ).numpy()
        m = combine(row, x, u, c)
        np.testing.assert_allclose(row.x0_x * x + row.x0_m * m, expected, rtol=1e-9, atol=1e-9)


def test_apg_threshold_by_size() -> None:
    """15 at SDXL's 4x128x128 latents; as much a value elsewhere."""
    row = plan(Schedule(prediction_type="sample"), "ddim", 2, 6.0).rows[0]
    x, u, c = (10 * v[:1] for v in arrays(3))
    default, given = Apg(), Apg(norm_threshold=15 * math.sqrt(4 * 6 * 5 / (4 * 128 * 128)))
    np.testing.assert_allclose(default.start()(row, x, u, c), given.start()(row, x, u, c), rtol=1e-12)
    assert np.abs(default.start()(row, x, u, c) - Apg(norm_threshold=0.0).start()(row, x, u, c)).max() > 1


def test_apg_with_everything_kept_is_plain_guidance() -> None:
    row = plan(Schedule(), "ddim", 4, 6.0).rows[1]
    x, u, c = arrays(3)
    np.testing.assert_allclose(Apg(1.0, 0.0, 0.0).start()(row, x, u, c), guide(row, u, c), rtol=1e-9, atol=1e-9)


def test_dynamic_threshold_of_latents() -> None:
    """Each channel about its mean: clipped at its own quantile, which comes down to the unguided estimate's."""
    table = plan(Schedule(), "ddim", 4, 8.0)
    x, u, c = arrays(3)
    row = table.rows[1]
    m = combiner(table, dynamic_thresholding_ratio=0.9)(row, x, u, c)
    x0, free, guided = (row.x0_x * x + row.x0_m * out for out in (m, c, guide(row, u, c)))
    for k, channel in np.ndindex(SHAPE[:2]):
        mean = guided[k, channel].mean()
        values, others = guided[k, channel] - mean, free[k, channel] - free[k, channel].mean()
        goal, limit = (np.quantile(np.abs(v), 0.9) for v in (others, values))
        assert limit > goal
        expected = mean + np.clip(values, -limit, limit) * goal / limit
        np.testing.assert_allclose(x0[k, channel], expected, rtol=1e-9, atol=1e-9)
    # Where guidance widens nothing, nothing changes.
    np.testing.assert_array_equal(latent_threshold(0.5 * free, free, 0.9), 0.5 * free)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "heun", "unipc", "lms", "dpmpp_sde"])
def test_a_hook_that_does_nothing_changes_nothing(sampler: str) -> None:
    """The halves give what the fused row gives."""
    table = plan(Schedule(prediction_type="v_prediction"), sampler, 6, 5.0, "trailing")
    start = arrays(1)[0]

    def denoise(x: np.ndarray, t: float, guided: bool) -> tuple[np.ndarray, np.ndarray]:
        return np.tanh(x), np.sin(x + t / 500)

    ends = []
    for combine in (None, combiner(table, on_x0=lambda x0: x0)):
        noise = np.random.default_rng(1)
        for step in run(table, denoise, start, lambda: noise.standard_normal(SHAPE), combine):  # noqa: B023
            pass
        ends.append(step.after)
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-8, atol=1e-8)


def test_a_hook_sets_x0() -> None:
    table = plan(Schedule(), "ddim", 5, 5.0)
    combine = combiner(table, on_x0=np.zeros_like)
    steps = list(run(table, lambda x, t, g: (x, 2 * x), arrays(1)[0], lambda: np.zeros(SHAPE), combine))
    np.testing.assert_allclose(steps[-1].after, 0, atol=1e-9)
    np.testing.assert_allclose(steps[2].x0(), 0, atol=1e-9)


@pytest.mark.parametrize("options", [{"method": "apg"}, {"guidance_rescale": 0.5}, {"dynamic_thresholding_ratio": 0.9}])
def test_batches_do_not_change_pictures(options: dict) -> None:
    table = plan(Schedule(), "ddim", 3, 7.0)
    x, u, c = arrays(3).astype(np.float32)
    row = table.rows[1]
    together = combiner(table, **options)(row, x, u, c)
    assert together.dtype == np.float32
    for k in range(SHAPE[0]):
        alone = combiner(table, **options)(row, x[k : k + 1], u[k : k + 1], c[k : k + 1])
        np.testing.assert_allclose(together[k : k + 1], alone, rtol=1e-6, atol=1e-6)
    assert np.abs(together - guide(row, u, c)).max() > 0.01


@pytest.mark.parametrize("sampler", [name for name, s in SAMPLERS.items() if s.memoryless])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_cfg_plus_plus(sampler: str, prediction: str) -> None:
    """x0 from the guided estimate, the noise that goes back from the unconditional one (Chung et al., algorithm 2)."""
    schedule = Schedule(prediction_type=prediction)
    table = plan(schedule, sampler, 5, 0.6, guidance="cfg++")
    plain = plan(schedule, sampler, 5, 1.0)
    x, u, c, n = arrays(4)
    for row, single, level in zip(table.rows, plain.rows, table.levels, strict=False):
        assert row.guided
        x0 = estimate(row, x, u, c)
        x0_u = row.x0_x * x + row.x0_m * u
        np.testing.assert_allclose(x0, x0_u + 0.6 * row.x0_m * (c - u), rtol=1e-9, atol=1e-9)
        # The step without guidance on x0 alone, plus what the exchange of the noise estimate adds.
        m = (x0 - row.x0_x * x) / row.x0_m
        kept = single.a - single.bc / row.x0_m * row.x0_x  # factor of x in (x, x0) coordinates
        expected = update(single, x, None, m, (), n) + kept * level.alpha * (x0 - x0_u)
        np.testing.assert_allclose(update(row, x, u, c, (), n), expected, rtol=1e-8, atol=1e-8)


def test_cfg_plus_plus_by_hand() -> None:
    """DDIM, epsilon: sqrt(ab') x0 + sqrt(1 - ab') eps_u, written out."""
    table = plan(Schedule(), "ddim", 5, 0.7, guidance="cfg++")
    x, u, c = arrays(3)
    now, to = table.levels[2:4]
    x0 = (x - now.sigma * (u + 0.7 * (c - u))) / now.alpha
    np.testing.assert_allclose(update(table.rows[2], x, u, c), to.alpha * x0 + to.sigma * u, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", [-0.1, 1.5, math.nan])
def test_cfg_plus_plus_takes_a_share(scale: float) -> None:
    with pytest.raises(ArgumentError, match=r"guidance_scale is .*; it must be 0 \.\. 1"):
        plan(Schedule(), "ddim", 5, scale, guidance="cfg++")


def test_cfg_plus_plus_needs_no_history() -> None:
    with pytest.raises(ArgumentError, match="cfg\\+\\+ needs a sampler without history; choose from ddim, ddpm, euler"):
        plan(Schedule(), "dpmpp_2m", 5, 0.6, guidance="cfg++")
    with pytest.raises(ArgumentError, match="cannot be combined with guidance_rescale"):
        combiner(plan(Schedule(), "ddim", 5, 0.6, guidance="cfg++"), "cfg++", guidance_rescale=0.5)


def test_bad_arguments() -> None:
    with pytest.raises(ArgumentError, match=r"apg eta is 2; it must be a number, 0 \.\. 1"):
        Apg(eta=2)
    with pytest.raises(ArgumentError, match="no guidance 'cfq'; choose from cfg, cfg"):
        plan(Schedule(), "ddim", 5, 3.0, guidance="cfq")
    table = plan(Schedule(), "ddim", 5, 5.0)
    combine = combiner(table, on_x0=lambda x0: x0[0])
    with pytest.raises(ArgumentError, match=r"on_x0 gave float64\(4, 6, 5\); it must give float64\(3, 4, 6, 5\)"):
        combine(table.rows[0], *arrays(3))
    for hook, said in (
        (lambda x0: x0 * 1j, "on_x0 gave complex128"),
        (lambda x0: x0.astype(str), "on_x0 gave <U"),
        (lambda x0: x0 * np.nan, "on_x0 gave values that are not finite"),
        (lambda x0: None, "on_x0 gave NoneType"),
    ):
        with pytest.raises(ArgumentError, match=said):
            combiner(table, on_x0=hook)(table.rows[0], *arrays(3))
