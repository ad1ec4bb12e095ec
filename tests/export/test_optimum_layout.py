"""A folder in optimum's layout: its names, and diffusers' pictures. ``.ci/optimum`` opens such folders with optimum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edgediff
from edgediff import ArgumentError, BundleError, OutputError
from edgediff.bundle.onnx_file.walk import read_header
from edgediff_export.__main__ import main
from edgediff_export.optimum_layout.write import export_optimum

from ..support.families import make, pipeline

# As optimum-onnx 0.1.0 writes SDXL, by part.
SDXL: dict[str, tuple[list[str], list[str]]] = {
    "text_encoder": (
        ["input_ids int64[batch_size, sequence_length]"],
        ["last_hidden_state", "pooler_output", *(f"hidden_states.{k}" for k in range(4))],
    ),
    "text_encoder_2": (
        ["input_ids int64[batch_size, sequence_length]"],
        ["text_embeds", "last_hidden_state", *(f"hidden_states.{k}" for k in range(4))],
    ),
    "unet": (
        [
            "sample float32[batch_size, 4, height, width]",
            "timestep float32[]",
            "encoder_hidden_states float32[batch_size, sequence_length, 48]",
            "text_embeds float32[batch_size, 32]",
            "time_ids float32[batch_size, 6]",
        ],
        ["out_sample"],
    ),
    "vae_decoder": (["latent_sample float32[batch_size, 4, latent_height, latent_width]"], ["sample"]),
    "vae_encoder": (["sample float32[batch_size, 3, sample_height, sample_width]"], ["latent_parameters"]),
}


def test_names_are_optimums_and_pictures_are_diffusers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = make("sdxl", tmp_path / "source")
    assert main([str(source), str(tmp_path / "out"), "--layout", "optimum", "--precision", "fp32"]) == 0
    assert capfd.readouterr().out.strip().endswith(str(tmp_path / "out"))
    for part, (inputs, outputs) in SDXL.items():
        header = read_header(tmp_path / "out" / part / "model.onnx")
        assert [str(port) for port in header.inputs] == inputs
        assert [port.name for port in header.outputs] == outputs
        assert (tmp_path / "out" / part / "config.json").is_file()
    decoded = read_header(tmp_path / "out" / "vae_decoder" / "model.onnx").outputs[0].shape
    assert decoded == ("batch_size", 3, "latent_height * 2", "latent_width * 2")
    pipe = pipeline("sdxl")
    pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {"prompt": "a red apple", "negative_prompt": "a fish", "height": 32, "width": 32}
    call |= {"num_inference_steps": 4, "guidance_scale": 5.0, "output_type": "latent"}
    wanted = pipe(**call, generator=torch.Generator().manual_seed(3)).images.numpy()
    found = edgediff.load(tmp_path / "out")(**call, seed=3).latents
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    assert not list(tmp_path.glob(".out*"))


def test_what_has_no_place_in_that_layout(tiny_source: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="no precision 'fp16' in optimum's layout; choose from fp32, fp16-weights"):
        export_optimum(tiny_source, tmp_path / "out", precision="fp16")
    with pytest.raises(ArgumentError, match=r"embeddings is .*; optimum's layout has no place for it"):
        export_optimum(tiny_source, tmp_path / "out", embeddings=[("word", "file.safetensors")])
    with pytest.raises(BundleError, match="has no autoencoder; optimum has no pipeline without one"):
        export_optimum(make("pixel-text", tmp_path / "pixel"), tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(OutputError, match="it exists and is not an empty folder"):
        export_optimum(tiny_source, tmp_path / "full")
