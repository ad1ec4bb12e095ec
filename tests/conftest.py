"""Shared models: a tiny Stable Diffusion with seeded random weights, exported once a session, and the built-in one."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgediff
from edgediff_export.reference_model.captions import all_captions
from edgediff_export.reference_model.glyphs import core_glyphs


def tiny_pipeline(folder: Path, scheduler: Any = None) -> Path:
    """A diffusers folder with every part of SD 1.x at toy width: epsilon, scaled_linear, 4 latent channels, f4."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from edgediff_export.reference_model.tokenizer import train_tokenizer

    torch.manual_seed(0)
    tokenizer = train_tokenizer(all_captions(core_glyphs())[:2000], 700, 77, folder / "words")
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(16, 16, 32),
            latent_channels=4,
            norm_num_groups=8,
            sample_size=32,
        ),
        text_encoder=CLIPTextModel(
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
        ),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            sample_size=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(32, 64),
            layers_per_block=1,
            attention_head_dim=4,
            cross_attention_dim=32,
            norm_num_groups=8,
        ),
        scheduler=scheduler
        or PNDMScheduler(
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
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipeline(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_bundle(tiny_source: Path) -> Path:
    """The tiny pipeline as an fp32 bundle. Read-only: copy it to damage it."""
    from edgediff_export.convert import export

    return export(tiny_source, tiny_source.parent / "bundle", precision="fp32", name="tiny")


@pytest.fixture(scope="session")
def family_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The fp32 bundle of a family of models, made when it is first asked for, with ``source`` beside it. Read-only."""
    from edgediff_export.convert import export

    from .support.families import make

    @functools.cache
    def find(name: str) -> Path:
        root = tmp_path_factory.mktemp(name)
        return export(make(name, root / "source"), root / "bundle", precision="fp32")

    return find


@pytest.fixture
def damaged(tiny_bundle: Path, tmp_path: Path) -> Callable[[], Path]:
    """A fresh copy of the tiny bundle, to break."""

    def copy() -> Path:
        return Path(shutil.copytree(tiny_bundle, tmp_path / "damaged"))

    return copy


@pytest.fixture
def one_chunk(damaged: Callable[[], Path]) -> Path:
    """The tiny bundle with a U-Net that says it takes 77 tokens and no more, as engines of fixed shape do."""
    import json

    root = damaged()
    manifest = json.loads((root / "bundle.json").read_text(encoding="utf-8"))
    for tensor in manifest["parts"]["unet"]["inputs"]:
        if tensor["name"] == "encoder_hidden_states":
            tensor["shape"][1] = 77
    (root / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def emoji() -> edgediff.Pipeline:
    return edgediff.load().warm()


@pytest.fixture(scope="session")
def half_bundle(tiny_source: Path) -> Path:
    """The tiny pipeline in fp16, with graphs for TensorRT. Read-only."""
    from edgediff_export.convert import export

    return export(tiny_source, tiny_source.parent / "half", precision="fp16", name="half")
