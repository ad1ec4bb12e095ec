"""Folders as ``save_pretrained`` writes them, one a family of models: toy widths, seeded random weights."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizerFast

from .family_names import FAMILIES
from .tiny import seeded, tiny_tokenizer

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LATENT, FACTOR, SIDE = 4, 2, 16  # channels; pixels a latent cell; latent cells a side
TIMES = 8  # values that embed one number of time_ids


tokenizer = functools.cache(tiny_tokenizer)


def second_tokenizer() -> CLIPTokenizerFast:
    """SDXL's second tokenizer differs from its first in what it pads with."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer().save_pretrained(folder)
        found = CLIPTokenizerFast.from_pretrained(folder)
    found.pad_token = "!"
    return found


def text_encoder(width: int, projected: bool = False, seed: int = 0) -> Any:
    words = tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        hidden_act="gelu" if projected else "quick_gelu",
        # The default, 0.02, leaves words nearly without effect at these widths.
        initializer_factor=3.0,
    )
    return seeded((CLIPTextModelWithProjection if projected else CLIPTextModel)(config), seed)


def unet(width: int, text: int, channels: int = LATENT, seed: int = 1, **more: Any) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "sample_size": SIDE,
        "in_channels": channels,
        "out_channels": min(channels, LATENT),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (width, 2 * width),
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "cross_attention_dim": text,
        "norm_num_groups": 2,
    }
    return UNet2DConditionModel(**(settings | more)).eval()


def large_unet(width: int, text: int, pooled: int, numbers: int = 6, **more: Any) -> UNet2DConditionModel:
    """SDXL's: told pooled texts and ``numbers`` of sizes, linear projections, depth by block."""
    return unet(
        width,
        text,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIMES,
        projection_class_embeddings_input_dim=pooled + numbers * TIMES,
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        **more,
    )


def vae(width: int) -> AutoencoderKL:
    torch.manual_seed(2)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(width, width),
        latent_channels=LATENT,
        norm_num_groups=2,
        sample_size=SIDE * FACTOR,
        scaling_factor=0.18215,
    ).eval()


def tiny_vae(width: int) -> AutoencoderTiny:
    """TAESD's kind, which reads latents as the U-Net makes them (scaling factor 1)."""
    torch.manual_seed(3)
    return AutoencoderTiny(
        encoder_block_out_channels=(width,) * 2,
        decoder_block_out_channels=(width,) * 2,
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=LATENT,
    ).eval()


def pixel_unet(width: int) -> UNet2DModel:
    torch.manual_seed(4)
    return UNet2DModel(
        sample_size=SIDE,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(width, 2 * width),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=2,
    ).eval()


def _one(width: int, text: int, scheduler: Any, **changes: Any) -> dict[str, Any]:
    """Components of Stable Diffusion with one text encoder."""
    return {
        "text_encoder": text_encoder(text),
        "tokenizer": tokenizer(),
        "unet": unet(width, text),
        "vae": vae(width),
        "scheduler": scheduler,
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
        **changes,
    }


def _two(width: int, text: int, scheduler: Any, **changes: Any) -> dict[str, Any]:
    """Components of SDXL; its text encoders have widths ``text`` and twice that."""
    return {
        "text_encoder": text_encoder(text),
        "tokenizer": tokenizer(),
        "text_encoder_2": text_encoder(2 * text, projected=True, seed=5),
        "tokenizer_2": second_tokenizer(),
        "unet": large_unet(width, 3 * text, 2 * text),
        "vae": vae(width),
        "scheduler": scheduler,
        **changes,
    }


def pipeline(family: str, scale: int = 1) -> Any:
    """diffusers' pipeline of a family; ``scale`` multiplies its widths."""
    width, text = 8 * scale, 16 * scale
    ddim = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    euler = EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1)
    trailing: dict[str, Any] = {**BETAS, "timestep_spacing": "trailing", "steps_offset": 1}
    lcm = LCMScheduler(**BETAS, set_alpha_to_one=True)
    inner = 2 * LATENT + 1
    if family == "sd15":
        return StableDiffusionPipeline(**_one(width, text, ddim))
    if family == "sd21":  # v-prediction, linear projections, heads by block
        v = DDIMScheduler.from_config(ddim.config, prediction_type="v_prediction")
        assert v.config.prediction_type == "v_prediction"
        own = unet(width, text, use_linear_projection=True, attention_head_dim=(2, 4))
        return StableDiffusionPipeline(**_one(width, text, v, unet=own))
    if family == "sd-turbo":
        return StableDiffusionPipeline(**_one(width, text, EulerDiscreteScheduler(**trailing)))
    if family == "lcm":
        own = unet(width, text, time_cond_proj_dim=32)
        return LatentConsistencyModelPipeline(**_one(width, text, lcm, unet=own))
    if family == "inpaint":
        return StableDiffusionInpaintPipeline(**_one(width, text, ddim, unet=unet(width, text, inner)))
    if family == "taesd":
        return StableDiffusionPipeline(**_one(width, text, ddim, vae=tiny_vae(width)))
    if family == "pixel-text":
        own = unet(width, text, 3)
        return StableDiffusionPipeline(**_one(width, text, ddim, unet=own, vae=None))
    if family == "sdxl":
        return StableDiffusionXLPipeline(**_two(width, text, euler))
    if family == "sdxl-turbo":
        return StableDiffusionXLPipeline(**_two(width, text, EulerAncestralDiscreteScheduler(**trailing)))
    if family == "sdxl-lcm":
        own = large_unet(width, 3 * text, 2 * text, time_cond_proj_dim=32)
        return StableDiffusionXLPipeline(**_two(width, text, lcm, unet=own))
    if family == "sdxl-inpaint":
        own = large_unet(width, 3 * text, 2 * text, channels=inner)
        return StableDiffusionXLInpaintPipeline(**_two(width, text, euler, unet=own))
    if family == "sdxl-refiner":
        own = large_unet(width, 2 * text, 2 * text, numbers=5)
        parts = _two(width, text, euler, unet=own, text_encoder=None, tokenizer=None)
        return StableDiffusionXLImg2ImgPipeline(
            **parts, requires_aesthetics_score=True, force_zeros_for_empty_prompt=False
        )
    if family == "pixel":
        return DDPMPipeline(unet=pixel_unet(width), scheduler=DDPMScheduler(beta_schedule="linear"))
    if family == "pixel-ddim":
        return DDIMPipeline(unet=pixel_unet(width), scheduler=DDIMScheduler(beta_schedule="linear"))
    raise ValueError(f"no family {family!r}; choose from {', '.join(FAMILIES)}")


def make(family: str, folder: Path, scale: int = 1) -> Path:
    """Write a family's pipeline to ``folder``."""
    pipeline(family, scale).save_pretrained(folder)
    return folder
