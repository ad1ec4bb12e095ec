"""diffusers on the weights of a hollow bundle. Used by ``benchmarks.gpu``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_hollow import Weights


def why_not(place: str) -> str:
    """Why diffusers cannot run on ``place`` (cuda or cpu), or an empty string."""
    try:
        import diffusers  # noqa: F401
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        return f"{error.name or error} is not installed"
    return "" if place == "cpu" or torch.cuda.is_available() else "this torch finds no GPU"


def pipeline(folder: Path, place: str, dtype: str) -> Any:
    """StableDiffusionPipeline with the bundle's parameters, in ``dtype`` (float16 or float32) on ``place``."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizerFast

    weights, source = Weights(folder), folder / "source"
    config = json.loads((source / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))

    def made(component: str, build: Any) -> Any:
        module = build(json.loads((source / component / "config.json").read_text(encoding="utf-8")))
        wanted, values = module.state_dict().keys(), {}
        for name, parameter in weights.component(component):
            name = name if name in wanted else name.removeprefix("text_model.")  # as transformers 5 has it
            values[name] = torch.from_numpy(parameter.astype(np.float32))
        module.load_state_dict(values)
        return module.to(place, getattr(torch, dtype)).eval()

    pipe = StableDiffusionPipeline(
        vae=made("vae", AutoencoderKL.from_config),
        text_encoder=made("text_encoder", lambda config: CLIPTextModel(CLIPTextConfig.from_dict(config))),
        unet=made("unet", UNet2DConditionModel.from_config),
        tokenizer=CLIPTokenizerFast.from_pretrained(source / "tokenizer"),
        scheduler=DDIMScheduler.from_config(config | {"clip_sample": False}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe: Any, call: dict[str, Any], latents: np.ndarray | None, output_type: str) -> np.ndarray:
    """One call's result as an array: uint8 (B, H, W, 3), or latents; waits for it."""
    import torch

    given = None if latents is None else torch.from_numpy(latents).to(pipe.device, pipe.unet.dtype)
    out = pipe(**call, latents=given, output_type="latent" if output_type == "latent" else "np").images
    if output_type == "latent":
        return np.asarray(out.float().cpu().numpy())
    return np.asarray(np.round(np.asarray(out, np.float32) * 255), np.uint8)
