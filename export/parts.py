"""The parts of a diffusers pipeline as modules with flat, named tensors in and out, and how each is traced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from edgediff.bundle.manifest import TEXT_ENCODERS

from .attention import use_fused
from .sources.base import Source, encoders_of

MAX_CLIP_SKIP = 4  # nobody leaves out more of a text encoder's last layers
DynamicAxes = dict[str, dict[int, str]]


class WordTable(torch.nn.Module):
    """A token table that reads ids below 0 from a second table, -1 its row 0 (textual inversion)."""

    def __init__(self, table: torch.nn.Embedding) -> None:
        super().__init__()
        self.table = table
        self.extra: torch.Tensor | None = None

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        assert self.extra is not None
        zero = ids.new_zeros(())  # maximum, not clamp: TensorRT is documented to clip floats alone
        known = self.table(torch.maximum(ids, zero))
        return torch.where(ids.unsqueeze(-1) < 0, self.extra[torch.maximum(-1 - ids, zero)], known)


class TextEncoder(torch.nn.Module):
    """Gives the state that clip_skip 0 reads, those of clip_skip 1 .. ``skips``, and the pooled one where asked for.

    Stable Diffusion reads the last state, and earlier ones through the final norm as diffusers does; SDXL
    (``large``) counts from the last but one, without the norm.
    """

    def __init__(self, model: Any, skips: int, large: bool, pooled: bool) -> None:
        super().__init__()
        self.model, self.skips, self.large, self.pooled = model, skips, large, pooled
        embeddings = model.text_model.embeddings
        if not isinstance(embeddings.token_embedding, WordTable):
            embeddings.token_embedding = WordTable(embeddings.token_embedding)
        self.words = embeddings.token_embedding

    def forward(self, input_ids: torch.Tensor, extra_embeddings: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.words.extra = extra_embeddings
        out = self.model(input_ids=input_ids, output_hidden_states=True)
        if self.large:
            states = tuple(out.hidden_states[-2 - k] for k in range(self.skips + 1))
        else:
            norm = self.model.text_model.final_layer_norm
            skipped = (norm(out.hidden_states[-1 - k]) for k in range(1, self.skips + 1))
            states = (out.last_hidden_state, *skipped)
        return (*states, out.text_embeds) if self.pooled else states


class Unet(torch.nn.Module):
    """UNet2DConditionModel with all that it may be told as flat inputs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor | None = None,
        time_ids: torch.Tensor | None = None,
        timestep_cond: torch.Tensor | None = None,
    ) -> torch.Tensor:
        added = None if text_embeds is None else {"text_embeds": text_embeds, "time_ids": time_ids}
        out: torch.Tensor = self.model(
            sample,
            timestep,
            encoder_hidden_states,
            timestep_cond=timestep_cond,
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return out


class PixelUnet(torch.nn.Module):
    """UNet2DModel, which reads no text."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model(sample, timestep, return_dict=False)[0]
        return out


class VaeDecoder(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model.decode(latent_sample, return_dict=False)[0]
        return out


class PreviewDecoder(torch.nn.Module):
    """A tiny autoencoder's decoder that takes what the model's own takes. Its own scale is another one: it was trained
    on latents as the U-Net makes them.
    """

    def __init__(self, model: Any, scale: float, shift: float) -> None:
        super().__init__()
        self.model, self.scale, self.shift = model, scale, shift

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        scaled = (latent_sample - self.shift) * (self.scale / self.model.config.scaling_factor)
        out: torch.Tensor = self.model.decode(scaled + self.model.config.shift_factor, return_dict=False)[0]
        return out


class VaeEncoder(torch.nn.Module):
    """Gives the posterior's mean and log variance; drawing from it is the runtime's. A tiny autoencoder gives latents
    alone.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor, ...]:
        encoded = self.model.encode(sample)
        if not hasattr(encoded, "latent_dist"):
            return (encoded.latents,)
        return encoded.latent_dist.mean, encoded.latent_dist.logvar


@dataclass(frozen=True)
class Recipe:
    """How a part of the bundle is made of a component of the source.

    ``wrap(model)`` is the module to trace; ``example(batch, scale)`` gives its inputs for a batch at a multiple of the
    model's smallest picture; ``axes`` name the sizes that may change, by tensor.
    """

    name: str
    component: str
    wrap: Callable[[Any], torch.nn.Module]
    example: Callable[[int, int], dict[str, torch.Tensor]]
    outputs: tuple[str, ...]
    axes: DynamicAxes


@torch.no_grad()
def run(recipe: Recipe, module: torch.nn.Module, batch: int, scale: int) -> tuple[torch.Tensor, ...]:
    """torch's outputs on the example, in the order of the recipe's."""
    out = module(**recipe.example(batch, scale))
    return out if isinstance(out, tuple) else (out,)


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LATENT_AXES = {0: "batch", 2: "latent_height", 3: "latent_width"}
PICTURE_AXES = {0: "batch", 2: "height", 3: "width"}


def recipes_of(source: Source, facts: dict[str, Any]) -> list[Recipe]:
    """The parts that a checkpoint has, in the order in which they run. ``facts`` is ``facts_of(source)``."""
    large = facts["kind"] == "stable-diffusion-xl"
    encoders = [encoder for encoder, _ in encoders_of(source)]
    out = [
        _text_encoder(source, name, encoder, text["max_length"], large, large and encoder == encoders[-1])
        for name, encoder, text in zip(TEXT_ENCODERS, encoders, facts["text"], strict=False)
    ]
    out.append(_unet(source, facts))
    if source.has("vae"):
        out += [_decoder("vae_decoder", "vae", facts, VaeDecoder), _encoder(source, facts)]
    if source.has("preview_decoder"):
        latent = facts["latent"]

        def preview(model: Any) -> torch.nn.Module:
            return PreviewDecoder(model, latent["scale"], latent["shift"])

        out.append(_decoder("preview_decoder", "preview_decoder", facts, preview))
    return out


def _text_encoder(source: Source, name: str, component: str, length: int, large: bool, pooled: bool) -> Recipe:
    config = source.hollow(component).config
    skips = min(config.num_hidden_layers - 1, MAX_CLIP_SKIP)
    outputs = ("last_hidden_state", *(f"hidden_state_{k}" for k in range(1, skips + 1)))
    outputs += ("text_embeds",) if pooled else ()

    def wrap(model: Any) -> torch.nn.Module:
        model.config._attn_implementation = "eager"
        return TextEncoder(model, skips, large, pooled)

    def example(batch: int, scale: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        values = torch.randint(0, config.vocab_size - 2, (batch, length), generator=generator)
        values[:, 0], values[:, length // 2 :] = config.bos_token_id, config.eos_token_id
        values[:, 1] = torch.arange(batch) % scale - scale  # textual inversions
        return {"input_ids": values, "extra_embeddings": _normal(scale, config.hidden_size)}

    axes: DynamicAxes = {"input_ids": {0: "batch"}, "extra_embeddings": {0: "extra"}}
    return Recipe(name, component, wrap, example, outputs, axes | {output: {0: "batch"} for output in outputs})


def _unet(source: Source, facts: dict[str, Any]) -> Recipe:
    config = source.hollow("unet").config
    side = facts["latent"]["size_multiple"] // facts["latent"]["factor"]
    texts = facts["text"]
    steps = facts["schedule"]["num_train_timesteps"]

    def example(batch: int, scale: int) -> dict[str, torch.Tensor]:
        out = {
            "sample": _normal(batch, config.in_channels, side * scale, side * scale),
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
    return Recipe(
        "unet",
        "unet",
        lambda model: wrapper(use_fused(model)),
        example,
        ("out_sample",),
        {name: sizes for name, sizes in axes.items() if name in taken},
    )


def _decoder(name: str, component: str, facts: dict[str, Any], wrap: Callable[[Any], torch.nn.Module]) -> Recipe:
    latent = facts["latent"]
    side = latent["size_multiple"] // latent["factor"]
    return Recipe(
        name,
        component,
        lambda model: wrap(use_fused(model)),
        lambda batch, scale: {"latent_sample": _normal(batch, latent["channels"], side * scale, side * scale)},
        ("sample",),
        {"latent_sample": LATENT_AXES, "sample": PICTURE_AXES},
    )


def _encoder(source: Source, facts: dict[str, Any]) -> Recipe:
    side = facts["latent"]["size_multiple"]
    spread = type(source.hollow("vae")).__name__ != "AutoencoderTiny"
    outputs = ("latent_mean", "latent_logvar") if spread else ("latent_mean",)
    return Recipe(
        "vae_encoder",
        "vae",
        lambda model: VaeEncoder(use_fused(model)),
        lambda batch, scale: {"sample": _normal(batch, 3, side * scale, side * scale).clamp(-1, 1)},
        outputs,
        {"sample": PICTURE_AXES, **dict.fromkeys(outputs, LATENT_AXES)},
    )
