"""edgediff against diffusers: the samplers' tables alone, and whole runs with the same weights.

    python -m benchmarks.oracle [--pipeline FOLDER]

Needs the test extra. FOLDER is a diffusers pipeline (default: the built-in model's own, kept in this repository).
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
)

import edgediff
from benchmarks.common import REPOSITORY, table, write
from edgediff.levels import BETAS, PREDICTIONS, SPACINGS
from edgediff.loop import run
from edgediff.rng import TorchCpuGenerator

PIPELINE = REPOSITORY / "export" / "reference_model" / "pipeline"
SCHEDULERS: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "euler_a": EulerAncestralDiscreteScheduler,
    "dpmpp_2m": DPMSolverMultistepScheduler,
}
# diffusers' DDIM steps to t - 1000/N even where linspace puts the next timestep elsewhere; ours goes to the next one.
SKIPPED = {("ddim", "linspace")}


def toy(x: np.ndarray, t: float) -> np.ndarray:
    """A fixed nonlinear stand-in for a U-Net."""
    return np.tanh(0.7 * x + 0.3 * np.cos(t / 100.0)) + 0.1 * np.sin(3 * x)


def table_error(sampler: str, spacing: str, prediction: str, betas: str, steps: int = 20) -> float:
    """Largest difference over a run on the toy model, relative to the largest value of diffusers' final state."""
    config = {
        "beta_schedule": betas,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": prediction,
        "timestep_spacing": spacing,
        "steps_offset": 1 if spacing == "leading" else 0,
    }
    schedule = edgediff.Schedule(**config, set_alpha_to_one=False)
    extra = {"set_alpha_to_one": False, "clip_sample": False} if sampler == "ddim" else {}
    scheduler = SCHEDULERS[sampler](**config, **extra)
    scheduler.set_timesteps(steps)
    shape = (2, 4, 9, 7)
    start = TorchCpuGenerator(0).randn(shape).astype(np.float64)
    plan = edgediff.plan(schedule, sampler, steps, 1.0, spacing)

    generator = torch.Generator().manual_seed(1)
    x = torch.from_numpy(start) * float(scheduler.init_noise_sigma)
    options = {} if sampler == "ddim" else {"generator": generator}
    for t in scheduler.timesteps:
        model_in = scheduler.scale_model_input(x, t).double()
        out = torch.from_numpy(toy(model_in.numpy(), float(t)))
        x = scheduler.step(out, t, x, **options).prev_sample.double()
    expected = x.numpy()

    draws = torch.Generator().manual_seed(1)  # schedulers draw in the model output's dtype, here float64

    def noise() -> np.ndarray:
        return torch.randn(shape, generator=draws, dtype=torch.float64).numpy()

    got = start * plan.start
    for step in run(plan, lambda x, t, _: (None, toy(x, t)), got, noise):
        got = step.after
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def table_errors() -> dict[str, float]:
    """Worst over prediction types and beta schedules, by sampler and spacing."""
    out: dict[str, float] = {}
    for sampler, spacing in product(SCHEDULERS, SPACINGS):
        if (sampler, spacing) in SKIPPED:
            continue
        cases = [
            (prediction, betas)
            for prediction, betas in product(PREDICTIONS, BETAS)
            if comparable(sampler, spacing, prediction, betas)
        ]
        out[f"{sampler} {spacing}"] = max(table_error(sampler, spacing, p, b) for p, b in cases)
    return out


def comparable(sampler: str, spacing: str, prediction: str, betas: str) -> bool:
    """Leave out what diffusers refuses, and what its float32 sigmas (up to 4e4 on a cosine schedule) cannot hold."""
    refused = sampler == "euler_a" and prediction == "sample"
    coarse = sampler in ("euler", "euler_a") and betas == "squaredcos_cap_v2" and spacing != "leading"
    return not (refused or coarse)


def latents_error(folder: Path, bundle: Path, sampler: str, steps: int = 20, seed: int = 0) -> float:
    """Largest absolute difference of final latents between StableDiffusionPipeline and the runtime."""
    reference = StableDiffusionPipeline.from_pretrained(str(folder), safety_checker=None, torch_dtype=torch.float32)
    reference.set_progress_bar_config(disable=True)
    options = {"clip_sample": False} if sampler == "ddim" else {}
    reference.scheduler = SCHEDULERS[sampler].from_config(reference.scheduler.config, **options)
    prompt, negative = "a red apple on a blue background", "a green pear"
    arguments = {"negative_prompt": negative, "num_inference_steps": steps, "guidance_scale": 5.0}
    generator = torch.Generator().manual_seed(seed)
    expected = reference(prompt, generator=generator, output_type="latent", **arguments).images.numpy()
    pipe = edgediff.load(bundle)
    got = pipe(prompt, seed=seed, sampler=sampler, output_type="latent", **arguments).latents
    return float(np.abs(got - expected).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", type=Path, default=PIPELINE)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    tables = table_errors()
    print(table(["table", "largest relative difference"], [[k, f"{v:.1e}"] for k, v in tables.items()]))
    from edgediff_export.convert import export

    latents = {}
    with tempfile.TemporaryDirectory() as scratch:
        for precision in ("fp32", "fp16-weights"):
            bundle = export(args.pipeline, Path(scratch) / precision, precision=precision)
            for sampler in SCHEDULERS:
                latents[f"{sampler} {precision}"] = latents_error(args.pipeline, bundle, sampler)
    print()
    print(table(["20 steps, guidance 5", "largest absolute difference"], [[k, f"{v:.1e}"] for k, v in latents.items()]))
    write("oracle", {"tables": tables, "latents": latents}, ("edgediff", "numpy", "onnxruntime", "torch", "diffusers"))


if __name__ == "__main__":
    main()
