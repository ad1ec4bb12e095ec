"""The model's parts are built from a config. All are diffusers' or transformers' own classes."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

from .config import Config

# Linear betas end at alpha_bar = 4e-5, so that sampling starts where training ends: flat backgrounds keep
# their colour (Lin et al. 2023, "Common diffusion noise schedules and sample steps are flawed").
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,  # what StableDiffusionPipeline insists on; trailing spacing does not use it
    "clip_sample": False,
    "set_alpha_to_one": True,
}
PROJECTION = 64
INITIAL_LOGVAR = -6.0


def build_vae(config: Config) -> AutoencoderKL:
    levels = len(config.vae_channels)
    torch.manual_seed(config.seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.vae_channels,
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=8,
        sample_size=config.image_size,
        scaling_factor=1.0,  # unit deviation is folded into (post_)quant_conv after training
        mid_block_add_attention=False,
    )
    # Posterior noise starts small: with unit noise from the start the decoder learns nothing for a long time.
    with torch.no_grad():
        vae.quant_conv.weight[config.latent_channels :] = 0
        vae.quant_conv.bias[config.latent_channels :] = INITIAL_LOGVAR
    return vae


def build_text(config: Config, vocab_size: int, eos: int, bos: int) -> CLIPTextModelWithProjection:
    torch.manual_seed(config.seed + 1)
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=vocab_size,
            hidden_size=config.text_width,
            intermediate_size=4 * config.text_width,
            projection_dim=PROJECTION,
            num_hidden_layers=config.text_layers,
            num_attention_heads=max(1, config.text_width // 32),
            max_position_embeddings=config.max_length,
            hidden_act="quick_gelu",
            pad_token_id=eos,
            bos_token_id=bos,
            eos_token_id=eos,
        )
    )


def build_image(config: Config) -> CLIPVisionModelWithProjection:
    torch.manual_seed(config.seed + 2)
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=config.clip_image_width,
            intermediate_size=4 * config.clip_image_width,
            projection_dim=PROJECTION,
            num_hidden_layers=config.clip_image_layers,
            num_attention_heads=max(1, config.clip_image_width // 32),
            image_size=config.image_size,
            patch_size=config.clip_patch,
            hidden_act="quick_gelu",
        )
    )


def build_unet(config: Config) -> UNet2DConditionModel:
    torch.manual_seed(config.seed + 3)
    down = tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.unet_attention)
    up = tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.unet_attention))
    return UNet2DConditionModel(
        sample_size=config.latent_size,
        in_channels=config.latent_channels,
        out_channels=config.latent_channels,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=config.unet_channels,
        layers_per_block=config.unet_layers,
        attention_head_dim=tuple(max(1, c // config.unet_head_dim) for c in config.unet_channels),
        cross_attention_dim=config.text_width,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    return DDIMScheduler(**SCHEDULE)
