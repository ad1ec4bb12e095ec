"""The parts of a diffusers pipeline as modules with flat, named tensors in and out, and how each is traced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .attention import use_fused
from .source import Source

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
        known = self.table(ids.clamp(min=0))
        return torch.where(ids.unsqueeze(-1) < 0, self.extra[(-1 - ids).clamp(min=0)], known)


class TextEncoder(torch.nn.Module):
    """Gives the last state and, for clip_skip 1 .. ``skips``, earlier ones, each through the final norm as diffusers
    does.
    """

    def __init__(self, model: Any, skips: int) -> None:
        super().__init__()
        self.model, self.skips = model, skips
        embeddings = model.text_model.embeddings
        if not isinstance(embeddings.token_embedding, WordTable):
            embeddings.token_embedding = WordTable(embeddings.token_embedding)
        self.words = embeddings.token_embedding

    def forward(self, input_ids: torch.Tensor, extra_embeddings: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.words.extra = extra_embeddings
        out = self.model(input_ids=input_ids, output_hidden_states=True)
        norm = self.model.text_model.final_layer_norm
        return (out.last_hidden_state, *(norm(out.hidden_states[-1 - k]) for k in range(1, self.skips + 1)))


class Unet(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        out: torch.Tensor = self.model(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return out


class VaeDecoder(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model.decode(latent_sample, return_dict=False)[0]
        return out


class VaeEncoder(torch.nn.Module):
    """Gives the posterior's mean and log variance; drawing from it is the runtime's."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = self.model.encode(sample).latent_dist
        return posterior.mean, posterior.logvar


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


def recipes_of(source: Source, facts: dict[str, Any]) -> list[Recipe]:
    """The parts that a checkpoint has, in the order in which they run. ``facts`` is ``facts_of(source)``."""
    text, unet, vae = (source.hollow(name).config for name in ("text_encoder", "unet", "vae"))
    size_multiple, max_length = facts["latent"]["size_multiple"], facts["text"][0]["max_length"]
    channels, width = unet.in_channels, unet.cross_attention_dim
    side = size_multiple // facts["latent"]["factor"]

    skips = min(text.num_hidden_layers - 1, MAX_CLIP_SKIP)
    skipped = tuple(f"hidden_state_{k}" for k in range(1, skips + 1))

    def encoder(model: Any) -> torch.nn.Module:
        model.config._attn_implementation = "eager"
        return TextEncoder(model, skips)

    def ids(batch: int, scale: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        values = torch.randint(0, text.vocab_size - 2, (batch, max_length), generator=generator)
        values[:, 0], values[:, max_length // 2 :] = text.bos_token_id, text.eos_token_id
        values[:, 1] = torch.arange(batch) % scale - scale  # textual inversions
        return {"input_ids": values, "extra_embeddings": _normal(scale, text.hidden_size)}

    def noisy(batch: int, scale: int) -> dict[str, torch.Tensor]:
        return {
            "sample": _normal(batch, channels, side * scale, side * scale),
            "timestep": torch.linspace(999, 1, batch),
            "encoder_hidden_states": _normal(batch, max_length, width, seed=1),
        }

    def latent(batch: int, scale: int) -> dict[str, torch.Tensor]:
        return {"latent_sample": _normal(batch, vae.latent_channels, side * scale, side * scale)}

    def picture(batch: int, scale: int) -> dict[str, torch.Tensor]:
        return {"sample": _normal(batch, 3, size_multiple * scale, size_multiple * scale).clamp(-1, 1)}

    latent_axes = {0: "batch", 2: "latent_height", 3: "latent_width"}
    picture_axes = {0: "batch", 2: "height", 3: "width"}
    return [
        Recipe(
            "text_encoder",
            "text_encoder",
            encoder,
            ids,
            ("last_hidden_state", *skipped),
            {
                "input_ids": {0: "batch"},
                "extra_embeddings": {0: "extra"},
                **{name: {0: "batch"} for name in ("last_hidden_state", *skipped)},
            },
        ),
        Recipe(
            "unet",
            "unet",
            lambda model: Unet(use_fused(model)),
            noisy,
            ("out_sample",),
            {
                "sample": latent_axes,
                "timestep": {0: "batch"},
                "encoder_hidden_states": {0: "batch", 1: "tokens"},
                "out_sample": latent_axes,
            },
        ),
        Recipe(
            "vae_decoder",
            "vae",
            lambda model: VaeDecoder(use_fused(model)),
            latent,
            ("sample",),
            {"latent_sample": latent_axes, "sample": picture_axes},
        ),
        Recipe(
            "vae_encoder",
            "vae",
            lambda model: VaeEncoder(use_fused(model)),
            picture,
            ("latent_mean", "latent_logvar"),
            {"sample": picture_axes, "latent_mean": latent_axes, "latent_logvar": latent_axes},
        ),
    ]
