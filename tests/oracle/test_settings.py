"""Every setting of every scheduler class of diffusers that has a twin here: honoured, refused by name, or said.

A config with the setting at another value than its default is drawn by diffusers' class and by the table that the
config leads to. They agree, or the config is refused with the setting's name, or it has no twin (which exports say).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import edgediff
from edgediff.bundle.scheduler_config import remarks, schedule_of
from edgediff.errors import BundleError
from edgediff.sampling.guidance import combiner
from edgediff.sampling.loop import run
from edgediff.sampling.names import DIFFUSERS, from_config
from edgediff.sampling.rng import TorchCpuGenerator

from .schedulers import SHAPE, BrownianPath, toy

# Values of each setting that are no class's default, and such as reach into what others choose.
TRIALS: dict[str, tuple[Any, ...]] = {
    "num_train_timesteps": (500,),
    "beta_start": (0.0005,),
    "beta_end": (0.015,),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "trained_betas": (np.linspace(0.0001, 0.02, 1000).tolist(),),
    "prediction_type": ("epsilon", "v_prediction", "sample", "flow_prediction"),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "steps_offset": (1,),
    "set_alpha_to_one": (True, False),
    "rescale_betas_zero_snr": (True,),
    "clip_sample": (True, False),
    "clip_sample_range": (0.7,),
    "thresholding": (True,),
    "dynamic_thresholding_ratio": (0.9,),
    "sample_max_value": (2.0,),
    "variance_type": ("fixed_large", "learned_range"),
    "interpolation_type": ("log_linear",),
    "use_karras_sigmas": (True,),
    "use_exponential_sigmas": (True,),
    "use_beta_sigmas": (True,),
    "use_lu_lambdas": (True,),
    "use_flow_sigmas": (True,),
    "flow_shift": (3.0,),
    "sigma_min": (0.05,),
    "sigma_max": (10.0,),
    "timestep_type": ("continuous",),
    "final_sigmas_type": ("sigma_min",),
    "lambda_min_clipped": (-5.1, -2.0, -math.inf),
    "solver_order": (1, 3),
    "algorithm_type": ("dpmsolver", "sde-dpmsolver", "sde-dpmsolver++"),
    "solver_type": ("heun", "bh1"),
    "lower_order_final": (False, True),
    "euler_at_final": (True,),
    "predict_x0": (False,),
    "disable_corrector": ([0],),
    "solver_p": (diffusers.DDIMScheduler(),),
    "skip_prk_steps": (False,),
    "use_dynamic_shifting": (True,),
    "time_shift_type": ("linear",),
    "shift_terminal": (0.1,),
    "noise_sampler_seed": (7,),
    "original_inference_steps": (100, 25),
    "timestep_scaling": (5.0,),
    "shift": (3.0,),
}
# diffusers itself raises, or gives NaN.
BROKEN = {
    *((name, "prediction_type", "sample") for name in ("EulerAncestralDiscreteScheduler", "PNDMScheduler")),
    *((name, "prediction_type", "sample") for name in ("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler")),
    ("DPMSolverSDEScheduler", "prediction_type", "sample"),
    ("UniPCMultistepScheduler", "lower_order_final", False),
}
# Ours differs on purpose: diffusers averages raw v outputs of different levels. Exports say so.
OTHERWISE = {("PNDMScheduler", "prediction_type", "v_prediction")}
TOLERANCE = 3e-4  # both in float32
Run = tuple[np.ndarray, list[float]]  # the final state, and the timesteps that the model was told
STRAIGHT = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")


def settings(name: str) -> dict[str, Any]:
    """The constructor's settings of a class and their defaults."""
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {key: p.default for key, p in parameters.items() if key != "self"}


def pairs() -> Iterator[tuple[str, str]]:
    for name in DIFFUSERS:
        if name not in STRAIGHT:
            yield from ((name, setting) for setting in settings(name))


def theirs(name: str, config: dict[str, Any], steps: int) -> Run:
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(steps)
    generator = torch.Generator().manual_seed(1)
    if name == "DPMSolverSDEScheduler":
        scheduler.noise_sampler = BrownianPath(lambda: torch.randn(SHAPE, generator=generator))
    names = inspect.signature(scheduler.step).parameters
    # As pipelines call it, but for DDIM's noise estimate where x0 is clipped, which exports say.
    takes = {"generator": generator, "eta": 0.0, "use_clipped_model_output": True}
    takes = {key: value for key, value in takes.items() if key in names}
    x = torch.from_numpy(TorchCpuGenerator(0).randn(SHAPE)) * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t)
        x = scheduler.step(torch.from_numpy(toy(seen.numpy(), float(t)).astype(np.float32)), t, x, **takes)[0]
    return x.numpy(), [float(t) for t in scheduler.timesteps]


def ours(config: dict[str, Any], steps: int) -> Run:
    schedule = edgediff.Schedule(**schedule_of(config))
    found = from_config(config)
    assert found is not None
    table = edgediff.plan(schedule, found[0], steps, 1.0)
    clip = config.get("clip_sample_range", 1.0) if config.get("clip_sample") else None
    hook = None if clip is None else lambda x0: np.clip(x0, -clip, clip)
    generator = torch.Generator().manual_seed(1)
    states = run(
        table,
        lambda x, t, _: (None, toy(x, t).astype(np.float32)),
        TorchCpuGenerator(0).randn(SHAPE) * np.float32(table.start),
        lambda: torch.randn(SHAPE, generator=generator).numpy(),
        combiner(table, on_x0=hook),
    )
    *_, last = states
    return last.after, [row.t for row in table.rows]


def configs(name: str, setting: str, value: Any) -> Iterator[tuple[dict[str, Any], int]]:
    """Configs and steps to try a value with: short and long runs, every spacing, another schedule where it counts."""
    base: dict[str, Any] = {"beta_schedule": "scaled_linear"}
    base |= {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    base |= {"prediction_type": "v_prediction"} if setting == "rescale_betas_zero_snr" else {}
    base |= {"clip_sample": True} if setting == "clip_sample_range" else {}
    runs = (("leading", 6), ("trailing", 6), ("linspace", 6), ("linspace", 17))
    if value == "squaredcos_cap_v2":  # from its first level on, 2e4, float32 says nothing
        runs = runs[:1]
    for spacing, steps in runs:
        yield base | {"timestep_spacing": spacing, setting: value}, steps
        if setting == "lambda_min_clipped":
            yield base | {"timestep_spacing": spacing, "beta_schedule": "squaredcos_cap_v2", setting: value}, steps


@pytest.mark.parametrize(("name", "setting"), list(pairs()))
def test_setting(name: str, setting: str) -> None:
    assert setting in TRIALS, f"{name} has a setting {setting} that nobody has decided about"
    default = settings(name)
    for value in TRIALS[setting]:
        listed = (name, setting, value if isinstance(value, (str, bool)) else None)
        for config, steps in configs(name, setting, value):
            taken = {key: v for key, v in config.items() if key in default}
            full = default | taken | {"_class_name": name}
            if full.get("lambda_min_clipped") == -math.inf and full["beta_schedule"] == "squaredcos_cap_v2":
                continue  # diffusers' levels overflow without it
            refusal = refused(full)
            assert setting in refusal or not refusal
            if refusal or from_config(full) is None or listed in OTHERWISE:
                continue
            if listed in BROKEN:
                assert not works(name, taken, steps)
                continue
            error = difference(ours(full, steps), theirs(name, taken, steps))
            # Where the schedule ends in pure noise, diffusers' multistep classes come near the limit alone.
            assert error < (1e-2 if setting == "rescale_betas_zero_snr" else TOLERANCE), (taken, steps, error)


def refused(config: dict[str, Any]) -> str:
    """Why a config is refused; empty where it is not."""
    try:
        schedule_of(config)
    except BundleError as error:
        return str(error)
    return ""


def works(name: str, config: dict[str, Any], steps: int) -> bool:
    try:
        return bool(np.isfinite(theirs(name, config, steps)[0]).all())
    except (NotImplementedError, ValueError):
        return False


def difference(found: Run, expected: Run) -> float:
    """Of the final states, relative; the timesteps that the model is told are the same."""
    np.testing.assert_allclose(found[1], expected[1], atol=2e-3)
    return float(np.abs(found[0] - expected[0]).max() / np.abs(expected[0]).max())


@pytest.mark.parametrize(("name", "setting", "value"), sorted(OTHERWISE))
def test_what_differs_on_purpose_is_said(name: str, setting: str, value: str) -> None:
    config = settings(name) | {"_class_name": name, "skip_prk_steps": True, setting: value}
    assert any(setting in line for line in remarks(config))
    assert not remarks(config | {setting: settings(name)[setting]})


def test_what_clipping_does_in_ddim_is_said() -> None:
    config = settings("DDIMScheduler") | {"_class_name": "DDIMScheduler"}
    assert ["use_clipped_model_output=True" in line for line in remarks(config)] == [True]
    assert not remarks(config | {"clip_sample": False})
