"""A config says what is trained, how large and for how long. A preset is a value; scaling up is another preset."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Config:
    """A config describes one reference model.

    Sizes are pixels unless named otherwise; every ``*_steps`` counts optimizer steps.
    """

    name: str
    objects: str = "core"  # "core": the curated list; "all": every pictorial glyph of the font
    image_size: int = 64
    glyph_min: int = 48  # longest side of a drawn glyph
    glyph_max: int = 56
    jitter: int = 2  # the glyph's centre moves by up to this much
    seed: int = 0

    vae_channels: tuple[int, ...] = (16, 32, 64, 96)  # 4 levels: 8x smaller latents
    latent_channels: int = 16
    vae_steps: int = 10_000
    vae_crop: int = 32  # no attention in the autoencoder, so it can learn on crops
    vae_whole: float = 0.15  # last fraction of the steps runs on whole pictures
    vae_batch: int = 32
    vae_lr: float = 3e-3

    vocab_size: int = 1_024
    max_length: int = 32  # tokens, begin and end included
    text_width: int = 128
    text_layers: int = 3
    clip_patch: int = 8
    clip_image_width: int = 128
    clip_image_layers: int = 3
    clip_steps: int = 1_500
    clip_batch: int = 128
    clip_lr: float = 1e-3

    unet_channels: tuple[int, ...] = (96, 160)
    unet_attention: tuple[bool, ...] = (False, True)  # cross-attention by level
    unet_layers: int = 1
    unet_head_dim: int = 32
    unet_steps: int = 8_000
    unet_batch: int = 64
    unet_lr: float = 1e-3
    unet_ema: float = 0.998
    caption_dropout: float = 0.1
    latents_per_pair: int = 12  # cached renderings of each (object, colour)
    bf16: bool = True  # autocast; weights and optimizer stay fp32

    @property
    def latent_factor(self) -> int:
        return int(2 ** (len(self.vae_channels) - 1))

    @property
    def latent_size(self) -> int:
        return self.image_size // self.latent_factor

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)


PRESETS: dict[str, Config] = {
    # What ships: trained in under three hours on two CPU cores.
    "core64": Config("core64"),
    # The whole set, for a GPU.
    "all64": Config(
        "all64",
        objects="all",
        vae_channels=(32, 64, 96, 128),
        vae_steps=30_000,
        vae_batch=64,
        vocab_size=2_048,
        clip_steps=12_000,
        clip_batch=512,
        unet_steps=100_000,
        unet_batch=256,
        unet_ema=0.9995,
        latents_per_pair=24,
    ),
    "all128": Config(
        "all128",
        objects="all",
        image_size=128,
        glyph_min=96,
        glyph_max=112,
        jitter=4,
        vae_channels=(32, 64, 96, 128),
        vae_crop=64,
        vae_steps=40_000,
        vae_batch=64,
        vocab_size=2_048,
        clip_patch=16,
        clip_steps=12_000,
        clip_batch=512,
        unet_channels=(128, 192, 256),
        unet_attention=(False, True, True),
        unet_steps=150_000,
        unet_batch=256,
        unet_ema=0.9998,
        latents_per_pair=12,
    ),
    # Every stage in about a minute: for tests of the pipeline, not for pictures.
    "smoke": Config(
        "smoke",
        vae_channels=(8, 8, 8, 8),
        vae_steps=6,
        vae_batch=2,
        vocab_size=600,
        text_width=32,
        text_layers=1,
        clip_image_width=32,
        clip_image_layers=1,
        clip_steps=4,
        clip_batch=8,
        unet_channels=(32, 32),
        unet_steps=6,
        unet_batch=4,
        latents_per_pair=1,
    ),
}


def load(name_or_path: str) -> Config:
    """Find a preset by name, or read a JSON file with the same fields."""
    if name_or_path in PRESETS:
        return PRESETS[name_or_path]
    path = Path(name_or_path)
    if not path.is_file():
        raise ValueError(f"no config {name_or_path!r}; choose from {', '.join(PRESETS)}, or give a JSON file")
    raw = json.loads(path.read_text(encoding="utf-8"))
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()}
    return Config(**fields)
