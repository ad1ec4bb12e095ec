"""edgediff against diffusers: tables alone, and whole runs with the same weights and seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgediff.sampling.samplers import SAMPLERS
from edgediff.sampling.schedule import BETAS

from .cases import PIPELINE, PIPELINES, V_PIPELINES, cases, golden_error, goldens, latents_error
from .schedulers import FLOW, K_DIFFUSION, SCHEDULERS, scheduler_error


@pytest.mark.parametrize(("sampler", "spacing", "prediction"), cases())
def test_tables(sampler: str, spacing: str, prediction: str) -> None:
    # LCMScheduler takes its boundary condition in float32.
    assert scheduler_error(sampler, spacing, prediction) < (1e-6 if sampler == "lcm" else 1e-9)
    assert scheduler_error(sampler, spacing, prediction, wide=False) < 1e-5
    # Both in float32, as people run them: diffusers' own third-order coefficients of DEIS are that far off.
    both = scheduler_error(sampler, spacing, prediction, wide=False, their_wide=False)
    assert both < (1e-4 if sampler == "deis_3" else 1e-5)


@pytest.mark.parametrize("sampler", [s for s in SCHEDULERS if s not in ("lcm", "tcd")])
@pytest.mark.parametrize("betas", [b for b in BETAS if b != "scaled_linear"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 14, 15, 33])
def test_other_schedules_and_step_counts(sampler: str, betas: str, steps: int) -> None:
    """Lower orders at both ends of short runs, and step counts that do not divide the timesteps."""
    if steps == 33 and sampler in ("ddim", "plms"):
        pytest.skip("diffusers steps to t - 1000 // N, which is not where leading spacing puts the next timestep")
    spacing = "leading" if steps > 1 else "trailing"
    assert scheduler_error(sampler, spacing, betas=betas, steps=steps) < 1e-7


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 50])
@pytest.mark.parametrize("sampler", ["lcm", "tcd"])
def test_distilled_step_counts(sampler: str, steps: int) -> None:
    assert scheduler_error(sampler, "lcm", steps=steps) < (1e-6 if sampler == "lcm" else 1e-9)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_shift(shift: float) -> None:
    for sampler in FLOW:
        assert scheduler_error(sampler, "linspace", "flow_prediction", shift=shift) < 1e-9


@pytest.mark.parametrize(
    "sampler", ["ddim", "ddpm", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "unipc_3", "tcd"]
)
def test_zero_terminal_snr(sampler: str) -> None:
    """diffusers comes near the limit that ours takes (multistep ones as 1 / log); its DDIM takes it too."""
    spacing = "lcm" if sampler == "tcd" else "trailing"
    limit = 1e-12 if sampler == "ddim" else 1e-5
    assert scheduler_error(sampler, spacing, "v_prediction", zero=True) < limit


@pytest.mark.parametrize("key", goldens())
def test_k_diffusion(key: str) -> None:
    """Stored final states of k-diffusion's own samplers (see k_diffusion.py)."""
    # k-diffusion takes the timesteps of its own spacing in float32.
    assert golden_error(key, np.float64) < (1e-6 if key.endswith("normal") else 1e-12)
    assert golden_error(key, np.float32) < 1e-5


def test_every_sampler_has_an_oracle() -> None:
    assert set(SAMPLERS) == {*SCHEDULERS, *K_DIFFUSION}
    assert set(K_DIFFUSION) <= {key.split()[0] for key in goldens()}


@pytest.mark.parametrize("sampler", PIPELINES)
def test_stable_diffusion_shape(tiny_source: Path, tiny_bundle: Path, sampler: str) -> None:
    """Epsilon, leading spacing, steps_offset 1, 77 tokens: the way of SD 1.5."""
    # LCM's first jump divides the outputs' rounding by alpha, 0.07.
    assert latents_error(tiny_source, tiny_bundle, sampler) < (1e-3 if sampler == "lcm" else 1e-4)


@pytest.mark.parametrize("sampler", V_PIPELINES)
def test_built_in_model(emoji_fp32: Path, sampler: str) -> None:
    assert latents_error(PIPELINE, emoji_fp32, sampler) < 1e-3
