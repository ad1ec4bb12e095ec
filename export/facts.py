"""What a bundle's manifest says of a checkpoint, before any weight is read."""

from __future__ import annotations

import dataclasses
from typing import Any

import edgediff
from edgediff import bundle as bundles
from edgediff.errors import ArgumentError, BundleError
from edgediff.names import from_config

from .source import Source

# Scheduler settings that change the picture, with the values that leave it as the runtime's samplers make it.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "trained_betas": (None,),
    "clip_sample": (False,),
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
}


def facts_of(source: Source, defaults: dict[str, Any]) -> dict[str, Any]:
    """The manifest without its files; ``defaults`` overrides its defaults (size, steps, ...).

    Raises:
        BundleError: what the runtime cannot run.
    """
    vae, unet = source.hollow("vae").config, source.hollow("unet").config
    text, tokenizer = source.hollow("text_encoder").config, source.tokenizer("tokenizer")
    factor = 2 ** (len(vae.block_out_channels) - 1)
    if unet.in_channels != vae.latent_channels:
        raise BundleError(f"the U-Net takes {unet.in_channels} channels, the autoencoder gives {vae.latent_channels}")
    side = unet.sample_size * factor
    scheduler = source.scheduler()
    sampler, _ = from_config(scheduler) or ("ddim", None)
    return {
        "format": bundles.FORMAT,
        "name": "",
        "kind": bundles.KINDS[0],
        "schedule": schedule_of(scheduler),
        "latent": {
            "channels": vae.latent_channels,
            "factor": factor,
            "scale": vae.scaling_factor,
            "shift": vae.shift_factor or 0.0,
            "size_multiple": factor * 2 ** (len(unet.block_out_channels) - 1),
        },
        "defaults": {
            "width": side,
            "height": side,
            "num_inference_steps": 20,
            "guidance_scale": 7.5,
            "sampler": sampler,
            **defaults,
        },
        "text": [
            {
                "max_length": min(tokenizer.model_max_length, text.max_position_embeddings),
                "pad_id": tokenizer.pad_token_id,
            }
        ],
    }


def schedule_of(config: dict[str, Any]) -> dict[str, Any]:
    """The facts that the runtime plans from; settings that change the result and that it lacks are refused."""
    for key, neutral in NEUTRAL.items():
        if (value := config.get(key)) is not None and value not in neutral:
            raise BundleError(f"scheduler: {key} is {value!r}, which this version cannot run; it takes {neutral[0]!r}")
    names = {f.name for f in dataclasses.fields(edgediff.Schedule)}
    required = {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule"}
    if missing := sorted(required - {k for k in required if config.get(k) is not None}):
        raise BundleError(
            f"scheduler: {config.get('_class_name')} has no {missing[0]}; is it a discrete-time schedule?"
        )
    schedule = {k: v for k, v in config.items() if k in names and v is not None}
    # The sampler's spacing of noise levels (Karras, ...) comes before that of timesteps.
    if (twin := from_config(config)) and twin[1]:
        schedule["timestep_spacing"] = twin[1]
    try:
        return dataclasses.asdict(edgediff.Schedule(**schedule))
    except ArgumentError as error:
        raise BundleError(f"scheduler: {error}") from error
