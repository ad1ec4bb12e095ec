"""A Stable Diffusion of toy width with seeded random weights, as diffusers saves it, and the bundles made of it.

    python -m tests.support.tiny

writes the bundles of tests/data anew, with which the runtime is tested where torch is not installed.
tests/export/test_stored.py holds the exporter against them.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel

from edgediff_export.convert import export
from edgediff_export.sources.clip_tokenizer import BEGIN, END, tokenizer_of

DATA = Path(__file__).parents[1] / "data"
# Learned once from captions of the built-in model: the learner breaks ties at random.
MERGES = DATA / "tiny_merges.txt"
# The stored bundles, by their precision.
STORED = {"tiny": "fp32", "half": "fp16"}


def tiny_tokenizer() -> Any:
    """CLIP's tokenizer with a vocabulary of 700: every byte, inside and at the end of a word, and the stored merges."""
    alphabet = sorted(ByteLevel.alphabet())
    merges = MERGES.read_text(encoding="utf-8").splitlines()[1:]
    words = [merge.replace(" ", "") for merge in merges]
    tokens = dict.fromkeys([*alphabet, *(a + "</w>" for a in alphabet), *words, BEGIN, END])
    return tokenizer_of({token: k for k, token in enumerate(tokens)}, merges, 77)


@torch.no_grad()
def seeded(model: Any, seed: int = 0) -> Any:
    """Give every weight of a CLIP model values that are the same with every release of transformers, whose own come in
    another order and under other names from 5 on.
    """
    generator = torch.Generator().manual_seed(seed)
    factor = model.config.initializer_factor
    for name, weight in sorted(model.named_parameters(), key=lambda pair: pair[0].removeprefix("text_model.")):
        deviation = 0.5 * weight.shape[-1] ** -0.5 if weight.ndim == 2 and "embedding" not in name else 0.02
        weight.normal_(generator=generator).mul_(factor * deviation)
        if "norm" in name and name.endswith("weight"):
            weight.add_(1)
    return model.eval()


def tiny_pipeline(folder: Path, scale: int = 1) -> Path:
    """Write a diffusers folder with every part of SD 1.x: epsilon, scaled_linear, 4 latent channels, f4.

    ``scale`` multiplies the widths of U-Net and VAE.
    """
    tokenizer = tiny_tokenizer()
    text_encoder = seeded(
        CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=77,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
    )
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8 * scale, 8 * scale, 16 * scale),
            latent_channels=4,
            norm_num_groups=4,
            sample_size=32,
        ),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(8 * scale, 16 * scale),
            layers_per_block=1,
            attention_head_dim=4,
            cross_attention_dim=32,
            norm_num_groups=4,
        ),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def export_tiny(source: Path, out: Path, name: str) -> Path:
    """Export the tiny pipeline as one of the stored bundles."""
    return export(source, out, precision=STORED[name], name=name)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work:
        source = tiny_pipeline(Path(work))
        for name in STORED:
            shutil.rmtree(DATA / name, ignore_errors=True)
            export_tiny(source, DATA / name, name)
