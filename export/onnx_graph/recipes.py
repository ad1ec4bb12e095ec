"""Every part of the bundle has a recipe: how it is made of a component of the source, and how it is traced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from edgediff.bundle.manifest import TEXT_ENCODERS

from ..sources.base import Source, encoders_of
from .any_size import takes_any_size
from .clip_text import TextEncoder
from .modules import PixelUnet, PreviewDecoder, Unet, VaeDecoder, VaeEncoder

MAX_CLIP_SKIP = 4  # nobody leaves out more of a text encoder's last layers
DynamicAxes = dict[str, dict[int, str]]


@dataclass(frozen=True)
class PartRecipe:
    """A recipe says how a part of the bundle is made of a component of the source.

    ``wrap(model)`` is the module to trace; ``example(batch, scale)`` gives its inputs for a batch at a multiple, or
    near it, of the smallest picture whose sides the U-Net halves evenly; ``axes`` name the sizes that may change, by
    tensor.
    """

    name: str
    component: str
    wrap: Callable[[Any], torch.nn.Module]
    example: Callable[[int, int], dict[str, torch.Tensor]]
    outputs: tuple[str, ...]
    axes: DynamicAxes


@torch.no_grad()
def run_example(recipe: PartRecipe, module: torch.nn.Module, batch: int, scale: int) -> tuple[torch.Tensor, ...]:
    """Run the module on the recipe's example; outputs come in the recipe's order."""
    out = module(**recipe.example(batch, scale))
    return out if isinstance(out, tuple) else (out,)


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LATENT_AXES = {0: "batch", 2: "latent_height", 3: "latent_width"}
PICTURE_AXES = {0: "batch", 2: "height", 3: "width"}


def recipes_of(source: Source, facts: dict[str, Any]) -> list[PartRecipe]:
    """List the parts that a checkpoint has, in the order in which they run. ``facts`` is ``model_facts(source)``."""
    large = facts["kind"] == "stable-diffusion-xl"
    encoders = [encoder for encoder, _ in encoders_of(source)]
    out = [
        _text_encoder(source, name, encoder, text["max_length"], large, large and encoder == encoders[-1])
        for name, encoder, text in zip(TEXT_ENCODERS, encoders, facts["text"], strict=False)
    ]
    out.append(_unet(source, facts))
    if source.has("vae"):
        out += [_decoder("vae_decoder", "vae", source, facts, VaeDecoder), _encoder(source, facts)]
    if source.has("preview_decoder"):
        latent = facts["latent"]

        def preview(model: Any) -> torch.nn.Module:
            return PreviewDecoder(model, latent["scale"], latent["shift"])

        out.append(_decoder("preview_decoder", "preview_decoder", source, facts, preview))
    return out


def _text_encoder(source: Source, name: str, component: str, length: int, large: bool, pooled: bool) -> PartRecipe:
    config = source.hollow(component).config
    skips = min(config.num_hidden_layers - 1, MAX_CLIP_SKIP)
    outputs = ("last_hidden_state", *(f"hidden_state_{k}" for k in range(1, skips + 1)))
    outputs += ("text_embeds",) if pooled else ()

    def example(batch: int, scale: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        values = torch.randint(0, config.vocab_size - 2, (batch, length), generator=generator)
        values[:, 0], values[:, length // 2 :] = config.bos_token_id, config.eos_token_id
        values[:, 1] = torch.arange(batch) % scale - scale  # textual inversions
        return {"input_ids": values, "extra_embeddings": _normal(scale, config.hidden_size)}

    axes: DynamicAxes = {"input_ids": {0: "batch"}, "extra_embeddings": {0: "extra"}}
    wrap = partial(TextEncoder, length=length, skips=skips, large=large, pooled=pooled)
    return PartRecipe(name, component, wrap, example, outputs, axes | {output: {0: "batch"} for output in outputs})


def _unet(source: Source, facts: dict[str, Any]) -> PartRecipe:
    config = source.hollow("unet").config
    side, odd = _side(source), takes_any_size(config)
    texts = facts["text"]
    steps = facts["schedule"]["num_train_timesteps"]

    def example(batch: int, scale: int) -> dict[str, torch.Tensor]:
        # What is proved is neither square nor even, where that can be.
        height, width = (side * scale - 1, side * scale + 1) if odd and scale > 1 else (side * scale, side * scale)
        out = {
            "sample": _normal(batch, config.in_channels, height, width),
            "timestep": torch.linspace(steps - 1, 1, batch),
        }
        if texts:
            out["encoder_hidden_states"] = _normal(batch, texts[0]["max_length"], config.cross_attention_dim, seed=1)
        if facts["kind"] == "stable-diffusion-xl":
            pooled = source.hollow(encoders_of(source)[-1][0]).config.projection_dim
            numbers = (config.projection_class_embeddings_input_dim - pooled) // config.addition_time_embed_dim
            out["text_embeds"] = _normal(batch, pooled, seed=2)
            out["time_ids"] = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024][:numbers]]).repeat(batch, 1)
        if width := config.get("time_cond_proj_dim"):
            out["timestep_cond"] = _normal(batch, width, seed=3).clamp(-1, 1)
        return out

    axes: DynamicAxes = {name: {0: "batch"} for name in ("timestep", "text_embeds", "time_ids", "timestep_cond")}
    axes |= {"encoder_hidden_states": {0: "batch", 1: "tokens"}, "sample": LATENT_AXES, "out_sample": LATENT_AXES}
    if facts["latent"]["factor"] == 1:
        axes |= {"sample": PICTURE_AXES, "out_sample": PICTURE_AXES}
    taken = {*example(1, 1), "out_sample"}
    wrapper = Unet if texts else PixelUnet
    return PartRecipe(
        "unet",
        "unet",
        wrapper,
        example,
        ("out_sample",),
        {name: sizes for name, sizes in axes.items() if name in taken},
    )


def _side(source: Source) -> int:
    """Cells a side of the smallest latents whose sides the U-Net halves evenly."""
    return int(2 ** (len(source.hollow("unet").config.block_out_channels) - 1))


def _decoder(
    name: str, component: str, source: Source, facts: dict[str, Any], wrap: Callable[[Any], torch.nn.Module]
) -> PartRecipe:
    latent = facts["latent"]
    side = _side(source)
    return PartRecipe(
        name,
        component,
        wrap,
        lambda batch, scale: {"latent_sample": _normal(batch, latent["channels"], side * scale, side * scale)},
        ("sample",),
        {"latent_sample": LATENT_AXES, "sample": PICTURE_AXES},
    )


def _encoder(source: Source, facts: dict[str, Any]) -> PartRecipe:
    side = _side(source) * facts["latent"]["factor"]
    spread = type(source.hollow("vae")).__name__ != "AutoencoderTiny"
    outputs = ("latent_mean", "latent_logvar") if spread else ("latent_mean",)
    return PartRecipe(
        "vae_encoder",
        "vae",
        VaeEncoder,
        lambda batch, scale: {"sample": _normal(batch, 3, side * scale, side * scale).clamp(-1, 1)},
        outputs,
        {"sample": PICTURE_AXES, **dict.fromkeys(outputs, LATENT_AXES)},
    )
