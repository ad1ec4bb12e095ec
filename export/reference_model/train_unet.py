"""The denoiser learns by score matching in latent space (Ho et al. 2020; v-prediction: Salimans & Ho 2022)."""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel

from .captions import all_captions, caption, phrase
from .config import Config
from .glyphs import COLOURS, Glyph, sheet
from .models import build_scheduler, build_unet, build_vae
from .train_clip import tokenize, trained_clip
from .train_vae import encode_set, fold_scale, to_pictures
from .trainer import fit


def scaled_vae(config: Config, glyphs: list[Glyph], folder: Path) -> tuple[AutoencoderKL, torch.Tensor, torch.Tensor]:
    """Load the trained autoencoder with unit-deviation latents, the cached latents and their (glyph, colour) pairs."""
    vae = build_vae(config)
    vae.load_state_dict(torch.load(folder / "vae.pt", weights_only=True)["ema"]["vae"])
    vae.eval()
    latents, pairs = encode_set(config, vae, glyphs)
    fold_scale(vae, latents)
    mean = latents.mean((0, 1, 3, 4))[:, None, None]
    std = latents.movedim(2, 0).flatten(1).std(1)[:, None, None]
    return vae, (latents - mean) / std, pairs


@torch.no_grad()
def ddim(
    unet: UNet2DConditionModel, context: torch.Tensor, blank: torch.Tensor, noise: torch.Tensor, guidance: float
) -> torch.Tensor:
    """Take 20 DDIM steps, for sample sheets alone."""
    scheduler = build_scheduler()
    scheduler.set_timesteps(20)
    x, both = noise, torch.cat([blank.expand_as(context), context])
    for t in scheduler.timesteps:
        u, c = unet(torch.cat([x, x]), t, both).sample.chunk(2)
        x = scheduler.step(u + guidance * (c - u), t, x).prev_sample
    return x


def train_unet(config: Config, glyphs: list[Glyph], folder: Path) -> None:
    tokenizer, text, _ = trained_clip(config, glyphs, folder)
    vae, latents, pairs = scaled_vae(config, glyphs, folder)
    unet = build_unet(config)
    colours = list(COLOURS)
    alphas = build_scheduler().alphas_cumprod

    with torch.no_grad():
        texts = ["", *all_captions(glyphs)]
        index = {t: k for k, t in enumerate(texts)}
        hidden = torch.cat(
            [
                text(input_ids=tokenize(tokenizer, texts[k : k + 512])).last_hidden_state
                for k in range(0, len(texts), 512)
            ]
        )

    def loss_at(step: int) -> dict[str, torch.Tensor]:
        rng = random.Random(config.seed * 3_000_017 + step)
        generator = torch.Generator().manual_seed(step)
        picked = [rng.randrange(len(pairs)) for _ in range(config.unet_batch)]
        x0 = torch.stack([latents[k, rng.randrange(latents.shape[1])] for k in picked])
        context = []
        for k in picked:
            g, c = pairs[k].tolist()
            dropped = rng.random() < config.caption_dropout
            context.append(index["" if dropped else caption(glyphs[g], colours[c], rng)])
        # Stratified timesteps: the same uniform distribution, less variance.
        n = len(picked)
        t = ((torch.arange(n) + torch.rand(n, generator=generator)) * (1000 / n)).long().clamp(max=999)
        noise = torch.randn(x0.shape, generator=generator)
        alpha = alphas[t].sqrt()[:, None, None, None]
        sigma = (1 - alphas[t]).sqrt()[:, None, None, None]
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
            v = unet(alpha * x0 + sigma * noise, t, hidden[context]).sample.float()
        return {"loss": F.mse_loss(v, alpha * noise - sigma * x0)}

    live = build_unet(config).eval()
    rng = random.Random(-2)
    shown = [
        phrase("{a} on a {c} background", g.names[0], g.plural, rng.choice(colours))
        for g in glyphs[:: max(1, len(glyphs) // 32)]
    ]
    state: dict[str, torch.nn.Module] = {"unet": unet}

    def sample(step: int) -> None:
        shadow = torch.load(folder / "unet.pt", weights_only=True)["ema"]["unet"]
        live.load_state_dict(shadow)
        noise = torch.randn(len(shown), *latents.shape[2:], generator=torch.Generator().manual_seed(0))
        x = ddim(live, hidden[[index[s] for s in shown]], hidden[:1], noise, 4.0)
        with torch.no_grad():
            sheet(to_pictures(vae.decode(x).sample), 16, folder / f"unet-{step:06d}.png")

    fit("unet", folder, state, loss_at, steps=config.unet_steps, lr=config.unet_lr, ema=config.unet_ema,
        weight_decay=1e-4, sample=sample, sample_every=500)  # fmt: skip
