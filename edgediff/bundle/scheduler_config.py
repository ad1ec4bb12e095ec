"""A config of diffusers' schedulers tells the schedule, and the sampler and steps that suit the model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ..errors import ArgumentError, BundleError, choices
from ..sampling.names import DIFFUSERS, from_config
from ..sampling.schedule import Schedule

# Scheduler settings that change the picture, with the values that leave it as the runtime's samplers make it.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "trained_betas": (None,),
    "thresholding": (False,),
    "use_beta_sigmas": (False,),
    "use_flow_sigmas": (False,),
    "use_lu_lambdas": (False,),
    "euler_at_final": (False,),
    "final_sigmas_type": ("zero",),
    "timestep_type": ("discrete",),
    "interpolation_type": ("linear",),
    "sigma_min": (None,),
    "sigma_max": (None,),
    "use_dynamic_shifting": (False,),
    "shift_terminal": (None,),
    "solver_p": (None,),
}
SHOWN = 3  # values of a list in a message
# What diffusers' pipelines set whatever the folder says.
OFFSET, UNCLIPPED, SKIP = {"steps_offset": 1}, {"clip_sample": False}, {"skip_prk_steps": True}
PIPELINE_SCHEDULER = {
    "StableDiffusionPipeline": OFFSET | UNCLIPPED,
    "StableDiffusionImg2ImgPipeline": OFFSET | UNCLIPPED,
    "StableDiffusionInpaintPipeline": OFFSET | SKIP,
}


def as_run(config: dict[str, Any], pipeline: str, latent: bool) -> dict[str, Any]:
    """Return a scheduler's config as diffusers' ``pipeline`` runs it; ``latent`` where there is an autoencoder."""
    forced = PIPELINE_SCHEDULER.get(pipeline, {}) if latent else {}
    return config | {key: value for key, value in forced.items() if key in config}


def default_steps(scheduler: dict[str, Any], unet: Mapping[str, Any], text: bool, large: bool) -> dict[str, Any]:
    """Choose steps and guidance that suit the model: its scheduler tells, distilled models bring one of their own."""
    name, steps, guidance = scheduler["_class_name"], 20, 5.0 if large else 7.5
    if name in ("LCMScheduler", "TCDScheduler"):
        steps, guidance = 4, 8.5 if unet.get("time_cond_proj_dim") else 1.0
    # Turbo models (Sauer et al. 2023); others that start at the last timestep rescale to zero SNR or predict v.
    elif (
        name in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
        and scheduler.get("timestep_spacing") == "trailing"
        and scheduler.get("prediction_type") == "epsilon"
        and not scheduler.get("rescale_betas_zero_snr")
    ):
        steps, guidance = 1, 1.0
    elif not text:
        steps, guidance = 50, 1.0
    return {"num_inference_steps": steps, "guidance_scale": guidance}


def remarks(config: Mapping[str, Any]) -> list[str]:
    """Say, in a line each, where the runtime's sampler differs from diffusers' class of this config."""
    name = str(config.get("_class_name"))
    if (twin := from_config(config)) is None:
        return [f"scheduler: {name} with its settings has no twin here"]
    if twin[0] == "plms" and config.get("prediction_type") == "v_prediction":
        return [
            f"scheduler: {name} with prediction_type v_prediction averages raw outputs of different noise levels in "
            "diffusers; the sampler plms averages their noise estimates, so its pictures differ"
        ]
    if twin[0] == "ddim" and config.get("clip_sample"):
        return [
            f"scheduler: {name} with clip_sample takes the noise estimate that goes with the clipped picture, as "
            "diffusers does with use_clipped_model_output=True and not without"
        ]
    return []


def schedule_of(config: dict[str, Any]) -> dict[str, Any]:
    """Return what the runtime plans from; refuse settings that change the result and that it lacks."""
    required = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
    if missing := [k for k in required if config.get(k) is None]:
        raise BundleError(
            f"scheduler: {config.get('_class_name')} has no {missing[0]}, so no schedule of betas, which this version "
            f"runs by; choose from {choices(n for n in DIFFUSERS if not n.startswith('FlowMatch'))}"
        )
    for key, neutral in NEUTRAL.items():
        if (value := config.get(key)) is not None and value not in neutral:
            raise BundleError(
                f"scheduler: {key} is {_short(value)}, which this version cannot run; it takes {neutral[0]!r}"
            )
    names = {f.name for f in dataclasses.fields(Schedule)}
    schedule = {k: v for k, v in config.items() if k in names and v is not None}
    twin = from_config(config)
    for spacing in ("karras", "exponential"):  # classes without the setting pass it by
        schedule[f"use_{spacing}_sigmas"] = twin is not None and twin[1] == spacing
    if schedule.get("lambda_min_clipped") == -math.inf:
        del schedule["lambda_min_clipped"]
    if schedule.get("prediction_type") == "flow_prediction":  # the straight schedule is use_flow_sigmas'
        raise BundleError("scheduler: prediction_type is 'flow_prediction' on a schedule of betas, which cannot run")
    try:
        made = dataclasses.asdict(Schedule(**schedule))
    except (ArgumentError, TypeError) as error:
        raise BundleError(f"scheduler: {error}") from error
    return {key: value for key, value in made.items() if value is not None}


def _short(value: Any) -> str:
    """Write a setting for a message; of a long list its beginning."""
    if isinstance(value, (list, tuple)) and len(value) > SHOWN:
        return f"[{', '.join(map(repr, value[:SHOWN]))}, ...] ({len(value)} values)"
    return repr(value)
