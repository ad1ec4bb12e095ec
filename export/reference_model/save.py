"""The trained parts as a diffusers folder (``pipeline/``), the image tower and the model's facts beside it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel

from .config import Config
from .glyphs import Glyph
from .models import build_scheduler, build_unet
from .train_clip import trained_clip
from .train_unet import scaled_vae


def save(config: Config, glyphs: list[Glyph], folder: Path) -> Path:
    """Write ``folder/pipeline`` (save_pretrained), ``folder/image_tower`` and ``folder/card.json``."""
    tokenizer, text, image = trained_clip(config, glyphs, folder)
    vae, _, _ = scaled_vae(config, glyphs, folder)
    unet = build_unet(config)
    state = torch.load(folder / "unet.pt", weights_only=True)
    unet.load_state_dict(state["ema"]["unet"])
    encoder = CLIPTextModel(text.config)
    encoder.load_state_dict({k: v for k, v in text.state_dict().items() if k.startswith("text_model.")}, strict=False)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    out = folder / "pipeline"
    pipeline.save_pretrained(out)
    image.save_pretrained(folder / "image_tower")
    card = {"config": json.loads(config.to_json()), "objects": len(glyphs), "torch": torch.__version__, "stages": {}}
    for stage in ("vae", "clip", "unet"):
        lines = (folder / f"{stage}.jsonl").read_text(encoding="utf-8").splitlines()
        card["stages"][stage] = json.loads(lines[-1])
    (folder / "card.json").write_text(json.dumps(card, indent=2), encoding="utf-8")
    return out
