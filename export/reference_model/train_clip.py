"""A small CLIP (Radford et al. 2021, https://arxiv.org/abs/2103.00020) is trained on the same pairs.

Its text tower is the model's text encoder; its image tower scores pictures in tests and reports.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import CLIPTextModelWithProjection, CLIPTokenizerFast, CLIPVisionModelWithProjection

from .captions import all_captions, caption
from .config import Config
from .glyphs import COLOURS, Glyph
from .models import build_image, build_text
from .tokenizer import train_tokenizer
from .train_vae import random_picture, to_tensor
from .trainer import fit


class Temperature(torch.nn.Module):
    """Holds CLIP's logit scale, which is learned."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = torch.nn.Parameter(torch.tensor(2.66))

    def forward(self) -> torch.Tensor:
        return self.log_scale.clamp(max=4.6).exp()


def load_tokenizer(config: Config, glyphs: list[Glyph], folder: Path) -> CLIPTokenizerFast:
    return train_tokenizer(all_captions(glyphs), config.vocab_size, config.max_length, folder / "tokenizer")


def tokenize(tokenizer: CLIPTokenizerFast, texts: list[str], padding: str = "max_length") -> torch.Tensor:
    ids = tokenizer(texts, padding=padding, truncation=True, return_tensors="pt").input_ids
    assert isinstance(ids, torch.Tensor)
    return ids


def build_clip(
    config: Config, tokenizer: CLIPTokenizerFast
) -> tuple[CLIPTextModelWithProjection, CLIPVisionModelWithProjection]:
    text = build_text(config, len(tokenizer), tokenizer.eos_token_id, tokenizer.bos_token_id)
    return text, build_image(config)


def train_clip(config: Config, glyphs: list[Glyph], folder: Path) -> None:
    tokenizer = load_tokenizer(config, glyphs, folder)
    text, image = build_clip(config, tokenizer)
    temperature = Temperature()
    colours = list(COLOURS)
    pairs = [(g, c) for g in range(len(glyphs)) for c in range(len(colours))]

    def loss_at(step: int) -> dict[str, torch.Tensor]:
        rng = random.Random(config.seed * 2_000_003 + step)
        # Distinct pairs: no caption of the batch fits two pictures, but for the few that leave the colour open.
        chosen = rng.sample(pairs, min(config.clip_batch, len(pairs)))
        x = to_tensor([random_picture(config, glyphs[g], colours[c], rng) for g, c in chosen])
        # Noise teaches the image tower to look past the grain of generated pictures.
        generator = torch.Generator().manual_seed(step)
        x = x + torch.randn(x.shape, generator=generator) * 0.2 * torch.rand(len(x), 1, 1, 1, generator=generator)
        ids = tokenize(tokenizer, [caption(glyphs[g], colours[c], rng) for g, c in chosen], "longest")
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            t = text(input_ids=ids).text_embeds.float()
            i = image(pixel_values=x).image_embeds.float()
        logits = temperature() * F.normalize(i, dim=-1) @ F.normalize(t, dim=-1).T
        target = torch.arange(len(chosen))
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        accuracy = (logits.argmax(1) == target).float().mean()
        return {"loss": loss, "accuracy": accuracy}

    modules: dict[str, torch.nn.Module] = {"text": text, "image": image, "temperature": temperature}
    fit("clip", folder, modules, loss_at, steps=config.clip_steps, lr=config.clip_lr, weight_decay=0.02)


def trained_clip(
    config: Config, glyphs: list[Glyph], folder: Path
) -> tuple[CLIPTokenizerFast, CLIPTextModelWithProjection, CLIPVisionModelWithProjection]:
    tokenizer = load_tokenizer(config, glyphs, folder)
    text, image = build_clip(config, tokenizer)
    state = torch.load(folder / "clip.pt", weights_only=True)
    text.load_state_dict(state["text"])
    image.load_state_dict(state["image"])
    return tokenizer, text.eval(), image.eval()
