"""The parts of a diffusers pipeline become modules with flat, named tensors in and out."""

from __future__ import annotations

from typing import Any

import torch

from .any_size import takes_any_size

COMPONENT = "model."  # begins the names of these modules' parameters
ALWAYS = 30  # no side of latents divides by 2**30


class Unet(torch.nn.Module):
    """Takes all that a UNet2DConditionModel may be told as flat inputs.

    diffusers upsamples to the size of the skip connection where a side does not divide by 2**num_upsamplers, and by 2
    elsewhere, which is the same there. A graph has one way for all sizes, so it always takes the first.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        if takes_any_size(model.config):
            model.num_upsamplers = ALWAYS

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
    """Takes what a UNet2DModel is told; it reads no text."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model(sample, timestep, return_dict=False)[0]
        return out


class VaeDecoder(torch.nn.Module):
    """Turns latents into a picture."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model.decode(latent_sample, return_dict=False)[0]
        return out


class PreviewDecoder(torch.nn.Module):
    """A tiny autoencoder's decoder that takes what the model's own takes.

    Its own scale is another one: it was trained on latents as the U-Net makes them.
    """

    def __init__(self, model: Any, scale: float, shift: float) -> None:
        super().__init__()
        self.model, self.scale, self.shift = model, scale, shift

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        scaled = (latent_sample - self.shift) * (self.scale / self.model.config.scaling_factor)
        out: torch.Tensor = self.model.decode(scaled + self.model.config.shift_factor, return_dict=False)[0]
        return out


class VaeEncoder(torch.nn.Module):
    """Gives the posterior's mean and log variance; drawing from it is the runtime's.

    A tiny autoencoder gives latents alone.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor, ...]:
        encoded = self.model.encode(sample)
        if not hasattr(encoded, "latent_dist"):
            return (encoded.latents,)
        return encoded.latent_dist.mean, encoded.latent_dist.logvar
