"""What is compared with diffusers and k-diffusion: the cases, stored values, and whole runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path

import diffusers
import numpy as np
import torch

import edgediff
from edgediff.sampling.loop import run
from edgediff.sampling.rng import TorchCpuGenerator

from .schedulers import FLOW, SCHEDULERS, SIGMAS, TIMESTEPS, skipped, toy

PIPELINE = Path(__file__).parents[2] / "export" / "reference_model" / "pipeline"  # the built-in model's source
GOLDEN = Path(__file__).parent / "k_diffusion.json"
GOLDEN_SHAPE = (1, 4, 3, 3)
STEPS = 20
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPACINGS = (*TIMESTEPS, *SIGMAS, "lcm")
# No pipeline run to compare: the noise of DPMSolverSDEScheduler comes from another generator.
PIPELINES = [sampler for sampler in SCHEDULERS if sampler != "dpmpp_sde"]
# The built-in model predicts v, which PNDMScheduler averages raw over levels; ours averages noise, as the method says.
V_PIPELINES = [sampler for sampler in PIPELINES if sampler != "plms"]


def cases() -> list[tuple[str, str, str]]:
    """Every (sampler, spacing, prediction type) for which diffusers is an oracle."""
    pairs = [pair for pair in product(SCHEDULERS, SPACINGS) if not skipped(*pair)]
    return [(*pair, prediction) for pair, prediction in product(pairs, PREDICTIONS)] + [
        (sampler, "linspace", "flow_prediction") for sampler in FLOW
    ]


def golden_start() -> np.ndarray:
    """Unit noise, float64, from which the stored runs start."""
    return TorchCpuGenerator(0).randn(GOLDEN_SHAPE).astype(np.float64)


def golden_draws() -> Callable[[], torch.Tensor]:
    """The fresh noise of the stored runs, float64, from torch seed 1."""
    generator = torch.Generator().manual_seed(1)
    return lambda: torch.randn(GOLDEN_SHAPE, generator=generator, dtype=torch.float64)


@cache
def goldens() -> dict[str, list[float]]:
    """k-diffusion's stored final states by "sampler spacing"."""
    values: dict[str, list[float]] = json.loads(GOLDEN.read_text(encoding="utf-8"))["values"]
    return values


def golden_error(key: str, dtype: type) -> float:
    """Relative difference of a run in ``dtype`` from k-diffusion's stored final state."""
    sampler, spacing = key.split()
    expected = np.array(goldens()[key]).reshape(GOLDEN_SHAPE)
    plan = edgediff.plan(edgediff.Schedule(), sampler, STEPS, 1.0, spacing)
    got, draw = golden_start().astype(dtype) * plan.levels[0].sigma, golden_draws()
    for step in run(plan, lambda x, t, _: (None, toy(x, t)), got, lambda: draw().numpy().astype(dtype)):
        got = step.after
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def latents_error(folder: Path, bundle: Path, sampler: str, steps: int = STEPS, seed: int = 0) -> float:
    """Largest absolute difference of final latents between StableDiffusionPipeline and the runtime."""
    reference = diffusers.StableDiffusionPipeline.from_pretrained(
        str(folder), safety_checker=None, torch_dtype=torch.float32
    )
    reference.set_progress_bar_config(disable=True)
    name, extra = SCHEDULERS[sampler]
    extra = {key: value for key, value in extra.items() if key != "set_alpha_to_one"}
    reference.scheduler = getattr(diffusers, name).from_config(reference.scheduler.config, **extra)
    prompt, negative = "a red apple on a blue background", "a green pear"
    arguments = {"negative_prompt": negative, "num_inference_steps": steps, "guidance_scale": 5.0}
    generator = torch.Generator().manual_seed(seed)
    expected = reference(prompt, generator=generator, output_type="latent", **arguments).images.numpy()
    pipe = edgediff.load(bundle)
    got = pipe(prompt, seed=seed, sampler=sampler, output_type="latent", **arguments).latents
    return float(np.abs(got - expected).max())
