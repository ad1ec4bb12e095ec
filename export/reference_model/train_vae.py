"""The autoencoder learns to reconstruct crops, then whole pictures; a light KL term keeps latents bounded."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from .config import Config
from .glyphs import COLOURS, Glyph, compose, sheet
from .models import build_vae
from .trainer import fit

KL_WEIGHT = 1e-6


def random_picture(config: Config, glyph: Glyph, colour: str, rng: random.Random) -> np.ndarray:
    j = config.jitter
    longest = rng.randint(config.glyph_min, config.glyph_max)
    return compose(glyph.char, colour, config.image_size, longest, rng.randint(-j, j), rng.randint(-j, j))


def to_tensor(pictures: list[np.ndarray]) -> torch.Tensor:
    """Turn uint8 HWC pictures into float32 (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(x: torch.Tensor) -> np.ndarray:
    pictures: np.ndarray = ((x.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return pictures


def train_vae(config: Config, glyphs: list[Glyph], folder: Path) -> AutoencoderKL:
    vae = build_vae(config)
    colours = list(COLOURS)
    crop_until = int(config.vae_steps * (1 - config.vae_whole))

    def batch(step: int, whole: bool) -> torch.Tensor:
        rng = random.Random(config.seed * 1_000_003 + step)
        out = []
        for _ in range(config.vae_batch // (4 if whole else 1) or 1):
            picture = random_picture(config, rng.choice(glyphs), rng.choice(colours), rng)
            if not whole:
                # Crops keep to the latent grid, so that the same pixel always meets the same phase.
                cells = (config.image_size - config.vae_crop) // config.latent_factor
                top, left = (rng.randint(0, cells) * config.latent_factor for _ in range(2))
                picture = picture[top : top + config.vae_crop, left : left + config.vae_crop]
            out.append(picture)
        return to_tensor(out)

    def loss_at(step: int) -> dict[str, torch.Tensor]:
        x = batch(step, step >= crop_until)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            posterior = vae.encode(x).latent_dist
            mean, logvar = posterior.mean.float(), posterior.logvar.float()
            noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(step))
            y = vae.decode(mean + torch.exp(0.5 * logvar) * noise).sample.float()
        mse = F.mse_loss(y, x)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1).mean()
        return {"loss": mse + KL_WEIGHT * kl, "mse": mse, "kl": kl, "psnr": 10 * torch.log10(4 / mse.detach())}

    def sample(step: int) -> None:
        rng = random.Random(-1)
        shown = [random_picture(config, g, rng.choice(colours), rng) for g in glyphs[:: max(1, len(glyphs) // 24)]]
        x = to_tensor(shown)
        with torch.no_grad():
            y = vae.decode(vae.encode(x).latent_dist.mean).sample
        both = np.concatenate([np.stack(shown), to_pictures(y)], axis=1)
        sheet(both, 12, folder / f"vae-{step:06d}.png")

    state = fit("vae", folder, {"vae": vae}, loss_at, steps=config.vae_steps, lr=config.vae_lr, ema=0.995,
                sample=sample, sample_every=2000)  # fmt: skip
    vae.load_state_dict(state["ema"]["vae"])
    return vae.eval()


@torch.no_grad()
def encode_set(config: Config, vae: AutoencoderKL, glyphs: list[Glyph]) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode ``latents_per_pair`` renderings of every pair to their latent means.

    Returns float32 (pairs, renderings, C, h, w) and the (glyph, colour) indices, int64 (pairs, 2).
    """
    rng = random.Random(config.seed + 17)
    pairs = [(g, c) for g in range(len(glyphs)) for c in range(len(COLOURS))]
    names, out = list(COLOURS), []
    for g, c in pairs:
        x = to_tensor([random_picture(config, glyphs[g], names[c], rng) for _ in range(config.latents_per_pair)])
        out.append(vae.encode(x).latent_dist.mean)
    return torch.stack(out), torch.tensor(pairs)


@torch.no_grad()
def fold_scale(vae: AutoencoderKL, latents: torch.Tensor) -> None:
    """Rewrite (post_)quant_conv so that each latent channel has zero mean and unit deviation over ``latents``."""
    channels = latents.shape[-3]
    flat = latents.movedim(-3, 0).reshape(channels, -1)
    mean, std = flat.mean(1), flat.std(1)
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:channels] /= std[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / std
    quant.bias[channels:] -= 2 * std.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= std[None, :, None, None]
