"""Published configs say what a single file does not: Stable Diffusion 1.5, 2.1, SDXL, its refiner and SD-Turbo.

Sources: the config.json files of stable-diffusion-v1-5, stable-diffusion-2-1, stable-diffusion-xl-base-1.0,
stable-diffusion-xl-refiner-1.0 and sd-turbo; fields that have their class's default are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
PNDM = {"_class_name": "PNDMScheduler", **BETAS, "skip_prk_steps": True, "set_alpha_to_one": False}
DDIM = {"_class_name": "DDIMScheduler", **BETAS, "clip_sample": False, "set_alpha_to_one": False}
EULER = {"_class_name": "EulerDiscreteScheduler", **BETAS, "timestep_spacing": "leading"}
TURBO = EULER | {"timestep_spacing": "trailing"}

VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
UNET_2 = UNET | {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "upcast_attention": True,
}
UNET_XL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
UNET_REFINER = UNET_XL | {
    "block_out_channels": (384, 768, 1536, 1536),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": 4,
    "cross_attention_dim": 1280,
    "attention_head_dim": (6, 12, 24, 24),
    "projection_class_embeddings_input_dim": 2560,
}
CLIP = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
CLIP_L = CLIP | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_H = CLIP | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,  # of 24: Stable Diffusion 2 reads the last but one
    "num_attention_heads": 16,
    "projection_dim": 512,
    "hidden_act": "gelu",
}
CLIP_G = CLIP | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}


@dataclass(frozen=True)
class Family:
    """A kind of single file: the prefix of each text encoder in it, and its components' configs."""

    name: str
    pipeline: str  # diffusers' class; ``inpaint`` that of its inpainting variant
    inpaint: str | None
    prefixes: dict[str, str]
    configs: dict[str, dict[str, Any]]
    scheduler: dict[str, Any]
    prediction_type: str = "epsilon"


FAMILIES = (
    Family(
        "Stable Diffusion 1",
        "StableDiffusionPipeline",
        "StableDiffusionInpaintPipeline",
        {"text_encoder": "cond_stage_model.transformer."},
        {"unet": UNET, "vae": VAE | {"scaling_factor": 0.18215}, "text_encoder": CLIP_L},
        PNDM,
    ),
    Family(
        "Stable Diffusion 2",
        "StableDiffusionPipeline",
        "StableDiffusionInpaintPipeline",
        {"text_encoder": "cond_stage_model.model."},
        {"unet": UNET_2, "vae": VAE | {"scaling_factor": 0.18215, "sample_size": 768}, "text_encoder": CLIP_H},
        DDIM,
        "v_prediction",
    ),
    Family(
        "SDXL",
        "StableDiffusionXLPipeline",
        "StableDiffusionXLInpaintPipeline",
        {"text_encoder": "conditioner.embedders.0.transformer.", "text_encoder_2": "conditioner.embedders.1.model."},
        {
            "unet": UNET_XL,
            "vae": VAE | {"scaling_factor": 0.13025, "sample_size": 1024},
            "text_encoder": CLIP_L,
            "text_encoder_2": CLIP_G,
        },
        EULER,
    ),
    Family(
        "SDXL refiner",
        "StableDiffusionXLImg2ImgPipeline",
        None,
        {"text_encoder_2": "conditioner.embedders.0.model."},
        {
            "unet": UNET_REFINER,
            "vae": VAE | {"scaling_factor": 0.13025, "sample_size": 1024},
            "text_encoder_2": CLIP_G,
        },
        EULER,
    ),
    Family(
        "SD-Turbo",  # Stable Diffusion 2.1 base, distilled (Sauer et al. 2023), with SDXL's names
        "StableDiffusionPipeline",
        "StableDiffusionInpaintPipeline",
        {"text_encoder": "conditioner.embedders.0.model."},
        {
            "unet": UNET_2 | {"sample_size": 64},
            "vae": VAE | {"scaling_factor": 0.18215, "sample_size": 768},
            "text_encoder": CLIP_H,
        },
        TURBO,
    ),
)
