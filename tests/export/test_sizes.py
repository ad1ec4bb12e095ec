"""Pictures of any multiple of the autoencoder's factor, as in diffusers, which upsamples to the size of the skip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

import edgediff
from edgediff_export.convert import export

from ..support.families import FACTOR, TIMES, pipeline, unet

# Three halvings, so that 40 pixels (20 cells) are odd on the way down: 20, 10, 5, 3.
LEVELS: dict[str, Any] = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (8, 8, 16, 16),
    "sample_size": 15,
}
LARGE: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": TIMES,
    "projection_class_embeddings_input_dim": 32 + 6 * TIMES,
    "use_linear_projection": True,
}
CALL: dict[str, Any] = {"prompt": "a red apple", "num_inference_steps": 3, "guidance_scale": 5.0}


def source_of(family: str, folder: Path) -> Any:
    """A family's pipeline with a U-Net of four levels, saved to ``folder``."""
    theirs = pipeline(family)
    theirs.register_modules(unet=unet(8, 48, **LARGE, **LEVELS) if family == "sdxl" else unet(8, 16, **LEVELS))
    theirs.save_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    return theirs


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_odd_sizes(tmp_path: Path, family: str) -> None:
    theirs = source_of(family, tmp_path / "source")
    ours = edgediff.load(export(tmp_path / "source", tmp_path / "bundle", precision="fp32"), threads=1)
    assert ours.bundle.latent.size_multiple == FACTOR
    assert (ours.bundle.defaults.width, ours.bundle.defaults.height) == (30, 30)  # odd latents
    for height, width in ((40, 24), (24, 72), (32, 32)):
        size = {"height": height, "width": width}
        expected = theirs(**CALL, **size, generator=torch.Generator().manual_seed(3), output_type="latent").images
        found = ours(**CALL, **size, seed=3).latents
        assert found.shape == (1, 4, height // FACTOR, width // FACTOR)
        assert np.abs(found - expected.numpy()).max() < 1e-4 * float(expected.abs().max())
    with pytest.raises(edgediff.ArgumentError, match="height is 41; it must be a multiple of 2: try 40 or 42"):
        ours(**CALL, height=41)


def test_odd_sizes_in_fp16(tmp_path: Path) -> None:
    """The graph whose upsampling reads sizes turns to fp16 as others do."""
    source_of("sd15", tmp_path / "source")
    one, half = (
        onnxruntime.InferenceSession(str(export(tmp_path / "source", tmp_path / p, precision=p) / "unet.onnx"))
        for p in ("fp32", "fp16")
    )
    random = np.random.default_rng(0)
    feed = {
        "sample": random.standard_normal((2, 4, 7, 13)).astype(np.float32),
        "timestep": np.array([999, 5], np.float32),
        "encoder_hidden_states": random.standard_normal((2, 77, 16)).astype(np.float32),
    }
    expected, found = (session.run(None, feed)[0] for session in (one, half))
    assert found.shape == feed["sample"].shape
    np.testing.assert_allclose(found, expected, atol=2e-2 * float(np.abs(expected).max()))


def test_a_unet_that_doubles_keeps_its_multiple(tmp_path: Path) -> None:
    """UNet2DModel has no other way in diffusers: odd sides fail there."""
    blocks: dict[str, Any] = {
        "down_block_types": ("DownBlock2D",) * 3,
        "up_block_types": ("UpBlock2D",) * 3,
        "block_out_channels": (8, 8, 8),
        "norm_num_groups": 2,
    }
    theirs = DDPMPipeline(unet=UNet2DModel(sample_size=12, **blocks), scheduler=DDPMScheduler())
    theirs.save_pretrained(tmp_path / "source")
    assert edgediff.load(export(tmp_path / "source", tmp_path / "a")).bundle.latent.size_multiple == 4
    with pytest.raises(RuntimeError):
        theirs.unet(torch.zeros(1, 3, 10, 10), 1)
    config = tmp_path / "source" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 10}))
    with pytest.raises(edgediff.ArgumentError, match=r"width is 10; it must be a multiple of 4: .* --size WxH"):
        export(tmp_path / "source", tmp_path / "b")
