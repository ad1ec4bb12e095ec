"""The parts of a manifest fit: each takes and gives what the runtime feeds and reads, and one what the next does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import BundleError, choices, shown
from .manifest import (
    NOTHING,
    OPTIONAL,
    SIZES,
    SIZES_AND_SCORE,
    TENSORS,
    TEXT_ENCODERS,
    Latent,
    Part,
    TokenizerFile,
    needed_parts,
    sample_channels,
)

# How many dimensions each tensor has; the others are a text encoder's states.
RANKS = {
    **dict.fromkeys(("sample", "out_sample", "latent_sample", "latent_mean", "latent_logvar"), 4),
    **dict.fromkeys(("input_ids", "extra_embeddings", "text_embeds", "time_ids", "timestep_cond"), 2),
    "timestep": 1,
}
STATES = 3


def check_tensors(name: str, part: Part) -> None:
    """Raise ``BundleError`` for a part that takes or gives something else than the runtime knows."""
    optional = OPTIONAL.get(name, (NOTHING, NOTHING))
    for what, tensors, needed, more in zip(
        ("input", "output"), (part.inputs, part.outputs), TENSORS[name], optional, strict=True
    ):
        if sorted(t.name for t in tensors if not more.fullmatch(t.name)) != sorted(needed):
            raise BundleError(
                f"part {name} has {what}s {shown([t.name for t in tensors])}; it must have {list(needed)}"
            )
        for tensor in tensors:
            if len(tensor.shape) != (rank := RANKS.get(tensor.name, STATES)):
                raise BundleError(
                    f"part {name}: {what} {tensor.name} has shape {shown(list(tensor.shape))}; it must have {rank} "
                    "dimensions"
                )


def check_factor(parts: Mapping[str, Part], latent: Latent) -> None:
    """Raise ``BundleError`` where the autoencoder's declared sizes tell another factor than the manifest."""
    if latent.factor == 1 and "vae_decoder" in parts:
        raise BundleError("latent.factor is 1, which is for models of pixels; there is a part vae_decoder")
    for name in ("vae_decoder", "preview_decoder", "vae_encoder"):
        if name not in parts:
            continue
        shapes = {t.name: t.shape for t in (*parts[name].inputs, *parts[name].outputs)}
        cells = shapes.get("latent_sample") or shapes.get("latent_mean") or ()
        for small, large in zip(cells[2:], shapes["sample"][2:], strict=False):
            if isinstance(small, int) and isinstance(large, int) and small * latent.factor != large:
                raise BundleError(
                    f"latent.factor is {latent.factor}; part {name} has {small} latent cells for {large} pixels a side"
                )


def check_parts(parts: Mapping[str, Part], text: Sequence[TokenizerFile], latent: Latent) -> None:
    """Raise ``BundleError`` where the parts do not fit together."""
    if len(text) > len(TEXT_ENCODERS):
        raise BundleError(f"text names {len(text)} tokenizers; at most {len(TEXT_ENCODERS)} text encoders are known")
    if "unet" not in parts:
        raise BundleError(f"part unet is missing; there are {choices(parts) or 'none'}")
    channels, inner = sample_channels(parts["unet"]), 2 * latent.channels + 1
    if channels not in (None, latent.channels, inner):
        raise BundleError(
            f"the U-Net takes {channels} channels; latents have {latent.channels}, with mask and masked picture {inner}"
        )
    for name in needed_parts(len(text), latent, channels not in (None, latent.channels)):
        if name not in parts:
            raise BundleError(f"part {name} is missing; there are {choices(parts) or 'none'}")
    if extra := [name for name in TEXT_ENCODERS[len(text) :] if name in parts]:
        raise BundleError(f"part {extra[0]} has no tokenizer; text names {len(text)}")
    inputs = {t.name: t for t in parts["unet"].inputs}
    if ("encoder_hidden_states" in inputs) != bool(text):
        raise BundleError(
            f"the U-Net has inputs {shown(list(inputs))} and text names {len(text)} tokenizers; texts go in by "
            "encoder_hidden_states"
        )
    pooled = [t.name for name in TEXT_ENCODERS[: len(text)][-1:] for t in parts[name].outputs]
    if "text_embeds" in inputs and "text_embeds" not in pooled:
        raise BundleError(f"the U-Net takes text_embeds, and the last of {len(text)} text encoders gives none")
    if "time_ids" in inputs and inputs["time_ids"].shape[-1:] not in ((SIZES,), (SIZES_AND_SCORE,)):
        raise BundleError(
            f"the U-Net takes time_ids of shape {inputs['time_ids'].shape}; the last must be {SIZES} (SDXL) or "
            f"{SIZES_AND_SCORE} (its refiner)"
        )
