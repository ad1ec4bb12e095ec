"""What a bundle's manifest says of a checkpoint, before any weight is read."""

from __future__ import annotations

import dataclasses
from typing import Any

import edgediff
from edgediff.bundle.manifest import Defaults
from edgediff.bundle.reading import FORMAT
from edgediff.errors import ArgumentError, BundleError, choices
from edgediff.sampling.names import from_config

from .sources.base import Source, encoders_of

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
}


# What diffusers' pipelines set whatever the folder says.
OFFSET, UNCLIPPED, SKIP = {"steps_offset": 1}, {"clip_sample": False}, {"skip_prk_steps": True}
PIPELINE_SCHEDULER = {
    "StableDiffusionPipeline": OFFSET | UNCLIPPED,
    "StableDiffusionImg2ImgPipeline": OFFSET | UNCLIPPED,
    "StableDiffusionInpaintPipeline": OFFSET | SKIP,
}


def facts_of(source: Source, defaults: dict[str, Any]) -> dict[str, Any]:
    """The manifest without its files; ``defaults`` overrides its defaults (size, steps, ...).

    Raises:
        BundleError: what the runtime cannot run.
    """
    unet = source.hollow("unet").config
    _check_unet(unet)
    large = unet.get("addition_embed_type") == "text_time"
    latent = _latent(source, unet)
    scheduler = scheduler_of(source)
    clip = scheduler.get("clip_sample_range", 1.0) if scheduler.get("clip_sample") else None
    if clip is not None and latent["factor"] > 1:
        raise BundleError("scheduler: clip_sample is True, which is for models of pixels")
    text = [_text(source, *pair) for pair in encoders_of(source)]
    width = sum(source.hollow(encoder).config.hidden_size for encoder, _ in encoders_of(source))
    if text and width != unet.cross_attention_dim:
        raise BundleError(f"the U-Net reads texts of width {unet.cross_attention_dim}, the text encoders give {width}")
    cells = unet.sample_size if isinstance(unet.sample_size, (list, tuple)) else [unet.sample_size or 64] * 2
    facts = {
        "format": FORMAT,
        "name": "",
        "kind": "pixel" if latent["factor"] == 1 else "stable-diffusion-xl" if large else "stable-diffusion",
        "schedule": schedule_of(scheduler),
        "latent": latent,
        "defaults": {
            "width": cells[1] * latent["factor"],
            "height": cells[0] * latent["factor"],
            **_steps(scheduler, unet, bool(text), large),
            "sampler": (from_config(scheduler) or ("ddim", None))[0],
            **defaults,
        },
        "text": text,
    }
    if large and source.setting("force_zeros_for_empty_prompt") is not False:  # what diffusers assumes
        facts["zero_negative"] = True
    if clip is not None:
        facts["clip_sample"] = float(clip)
    _check_defaults(facts)
    return facts


def _check_defaults(facts: dict[str, Any]) -> None:
    """Raise ``ArgumentError`` for defaults that no call could use."""
    given, multiple = facts["defaults"], facts["latent"]["size_multiple"]
    known = [f.name for f in dataclasses.fields(Defaults)]
    if unknown := [name for name in given if name not in known]:
        raise ArgumentError(f"no default {unknown[0]!r}; choose from {choices(known)}")
    for side in ("width", "height"):
        if given[side] < 1 or given[side] % multiple:
            raise ArgumentError(f"the default {side} is {given[side]}; it must be a multiple of {multiple}")
    if not facts["text"] and given["guidance_scale"] > 1:
        raise ArgumentError(f"the default guidance_scale is {given['guidance_scale']}; a model without text has none")
    schedule = edgediff.Schedule(**facts["schedule"])
    edgediff.plan(schedule, given["sampler"], given["num_inference_steps"], float(given["guidance_scale"]))


def scheduler_of(source: Source) -> dict[str, Any]:
    """The scheduler's config as diffusers' pipeline of that class runs it."""
    config = source.scheduler()
    forced = PIPELINE_SCHEDULER.get(source.pipeline, {}) if source.has("vae") else {}
    return config | {key: value for key, value in forced.items() if key in config}


def _check_unet(unet: Any) -> None:
    known = {
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "addition_embed_type": (None, "text_time"),
        "encoder_hid_dim_type": (None,),
    }
    for key, values in known.items():
        if unet.get(key) not in values:
            raise BundleError(f"unet: {key} is {unet.get(key)!r}, which this version cannot run")
    if unet.out_channels > unet.in_channels:
        raise BundleError(
            f"unet: it gives {unet.out_channels} channels for {unet.in_channels}; learned variances are not supported"
        )


def _latent(source: Source, unet: Any) -> dict[str, Any]:
    halvings = 2 ** (len(unet.block_out_channels) - 1)
    if not source.has("vae"):
        if source.has("preview_decoder"):
            raise BundleError("preview_decoder: a model of pixels needs none")
        if unet.in_channels != 3:
            raise BundleError(f"unet: {unet.in_channels} channels and no vae; a model of pixels has 3")
        return {"channels": 3, "factor": 1, "scale": 1.0, "shift": 0.0, "size_multiple": halvings}
    vae = source.hollow("vae").config
    factor = 2 ** (len(vae.block_out_channels) - 1)
    for key in ("latents_mean", "latents_std"):
        if vae.get(key) is not None:
            raise BundleError(f"vae: {key} is {vae[key]}, which this version cannot run; it takes scaling_factor alone")
    if source.has("preview_decoder"):
        small = source.hollow("preview_decoder").config
        cell = 2 ** (len(small.block_out_channels) - 1)
        if (small.latent_channels, cell) != (vae.latent_channels, factor):
            raise BundleError(
                f"preview_decoder: it reads {small.latent_channels} channels of {cell} pixels a side, this model's "
                f"latents have {vae.latent_channels} of {factor}"
            )
    if unet.in_channels not in (vae.latent_channels, 2 * vae.latent_channels + 1):
        raise BundleError(
            f"the U-Net takes {unet.in_channels} channels, the autoencoder gives {vae.latent_channels} "
            f"({2 * vae.latent_channels + 1} with a mask and a masked picture)"
        )
    return {
        "channels": vae.latent_channels,
        "factor": factor,
        "scale": vae.scaling_factor,
        "shift": vae.get("shift_factor") or 0.0,
        "size_multiple": factor * halvings,
    }


def _text(source: Source, encoder: str, tokenizer: str) -> dict[str, Any]:
    words, config = source.tokenizer(tokenizer), source.hollow(encoder).config
    return {
        "max_length": min(words.model_max_length, config.max_position_embeddings),
        "pad_id": words.pad_token_id,
    }


def _steps(scheduler: dict[str, Any], unet: Any, text: bool, large: bool) -> dict[str, Any]:
    """Steps and guidance that suit the model, as its scheduler tells: distilled models bring one of their own."""
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
