"""What a U-Net and its autoencoder say of the latents, and which of them the runtime cannot run."""

from __future__ import annotations

from typing import Any

from edgediff.errors import ArgumentError, BundleError, choices

from .onnx_graph.any_size import takes_any_size
from .sources.base import Source, encoders_of


def check_unet(source: Source, unet: Any) -> None:
    """Raise ``BundleError`` for a U-Net that the runtime cannot run."""
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
    blocks = [*unet.down_block_types, unet.get("mid_block_type") or "", *unet.up_block_types]
    if simple := [block for block in blocks if "SimpleCrossAttn" in block]:
        raise BundleError(
            f"unet: it has blocks {simple[0]}, whose attention reads picture and text at once, which this version "
            "cannot run; it takes CrossAttn blocks"
        )
    if encoders_of(source) and not any("CrossAttn" in block for block in blocks):
        raise BundleError(
            f"unet: none of its blocks reads the text ({choices(dict.fromkeys(filter(None, blocks)))}), and the "
            "pipeline has a text encoder; it takes a block with cross-attention, such as CrossAttnDownBlock2D"
        )


def latent_facts(source: Source, unet: Any, vae_shift: bool) -> dict[str, Any]:
    """Describe the latents; ``BundleError`` where U-Net, autoencoder and preview decoder do not agree on them."""
    multiple = 1 if takes_any_size(unet) else 2 ** (len(unet.block_out_channels) - 1)
    if not source.has("vae"):
        if vae_shift:
            raise ArgumentError("vae_shift is True, and a model of pixels has no autoencoder")
        if source.has("preview_decoder"):
            raise BundleError("preview_decoder: a model of pixels needs none")
        if unet.in_channels != 3:
            raise BundleError(f"unet: {unet.in_channels} channels and no vae; a model of pixels has 3")
        return {"channels": 3, "factor": 1, "scale": 1.0, "shift": 0.0, "size_multiple": multiple}
    vae = source.hollow("vae").config
    factor = 2 ** (len(vae.block_out_channels) - 1)
    if factor == 1:
        raise BundleError(
            f"vae: block_out_channels is {list(vae.block_out_channels)}, one level: its latents are as large as the "
            "picture, which this version takes for a model of pixels; it runs autoencoders of two levels and more"
        )
    for key in ("in_channels", "out_channels"):
        if vae.get(key) != 3:
            raise BundleError(f"vae: {key} is {vae.get(key)}, which this version cannot run; pictures have 3 channels")
    if vae_shift and not vae.get("shift_factor"):
        raise ArgumentError(f"vae_shift is True, and the autoencoder's shift_factor is {vae.get('shift_factor')!r}")
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
        "shift": float(vae.shift_factor) if vae_shift else 0.0,
        "size_multiple": factor * multiple,
    }


def unused_shift(source: Source, facts: dict[str, Any]) -> str:
    """Say that the autoencoder has a shift that is not used; empty where it has none, or it is."""
    shift = source.hollow("vae").config.get("shift_factor") if source.has("vae") else None
    if not shift or facts["latent"]["shift"]:
        return ""
    return (
        f"vae: its shift_factor, {shift:g}, is not used, as diffusers' {source.pipeline} does not; --vae-shift decodes "
        "with it"
    )
