"""Manifests of every family: what is written, what is refused, the command, embeddings that travel along."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import edgediff
from edgediff import ArgumentError, BundleError
from edgediff.bundle.manifest import sha256
from edgediff.bundle.reading import read_bundle
from edgediff.cli import main as cli
from edgediff.verify import prove
from edgediff_export.convert import export

from ..bundle.test_reading import SCHEMA
from ..support.families import FAMILIES
from ..support.manifest import edit


@pytest.fixture
def changed(
    family_bundle: Callable[[str], Path], tmp_path: Path
) -> Callable[[str, Callable[[dict[str, Any]], Any]], Path]:
    """A copy of a family's bundle with another manifest."""

    def change(name: str, by: Callable[[dict[str, Any]], Any]) -> Path:
        return edit(Path(shutil.copytree(family_bundle(name), tmp_path / name)), by)

    return change


PARTS = {
    "sd15": ("text_encoder", "unet", "vae_decoder", "vae_encoder"),
    "sdxl": ("text_encoder", "text_encoder_2", "unet", "vae_decoder", "vae_encoder"),
    "sdxl-refiner": ("text_encoder", "unet", "vae_decoder", "vae_encoder"),
    "inpaint": ("text_encoder", "unet", "vae_decoder", "vae_encoder"),
    "lcm": ("text_encoder", "unet", "vae_decoder", "vae_encoder"),
    "pixel": ("unet",),
    "pixel-text": ("text_encoder", "unet"),
}
UNET = {
    "sd15": ("encoder_hidden_states",),
    "sdxl": ("encoder_hidden_states", "text_embeds", "time_ids"),
    "sdxl-refiner": ("encoder_hidden_states", "text_embeds", "time_ids"),
    "inpaint": ("encoder_hidden_states",),
    "lcm": ("encoder_hidden_states", "timestep_cond"),
    "pixel": (),
    "pixel-text": ("encoder_hidden_states",),
}


@pytest.mark.parametrize("name", PARTS)
def test_manifest(family_bundle: Callable[[str], Path], name: str) -> None:
    root = family_bundle(name)
    jsonschema.validate(json.loads((root / "bundle.json").read_text(encoding="utf-8")), SCHEMA)
    found = read_bundle(root)
    assert tuple(found.parts) == PARTS[name]
    assert tuple(t.name for t in found.parts["unet"].inputs) == ("sample", "timestep", *UNET[name])
    assert found.needed == tuple(p for p in PARTS[name] if p != "vae_encoder" or name == "inpaint")
    assert found.inpaints == (name == "inpaint")
    assert found.embeds_guidance == (name == "lcm")
    edgediff.load(root).warm()


def _drop_part(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda data: data["parts"].pop(name)


def _drop_tensor(part: str, side: str, name: str) -> Callable[[dict[str, Any]], Any]:
    def change(data: dict[str, Any]) -> None:
        data["parts"][part][side] = [t for t in data["parts"][part][side] if t["name"] != name]

    return change


def _shape(part: str, name: str, shape: list[Any]) -> Callable[[dict[str, Any]], Any]:
    def change(data: dict[str, Any]) -> None:
        next(t for t in data["parts"][part]["inputs"] if t["name"] == name)["shape"] = shape

    return change


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("sdxl", _drop_part("text_encoder_2"), "part text_encoder_2 is missing"),
        ("sdxl", lambda d: d["text"].pop(), "part text_encoder_2 has no tokenizer; text names 1"),
        ("sdxl", lambda d: d["text"].append(d["text"][0]), "text names 3 tokenizers"),
        ("sdxl", _drop_tensor("text_encoder_2", "outputs", "text_embeds"), "the last of 2 text encoders gives none"),
        ("sdxl", _shape("unet", "time_ids", ["batch", 7]), r"time_ids of shape \('batch', 7\)"),
        ("sdxl", _shape("unet", "time_ids", []), r"time_ids has shape \[\]; it must have 2 dimensions"),
        ("inpaint", _drop_part("vae_encoder"), "part vae_encoder is missing"),
        ("inpaint", _shape("unet", "sample", ["batch", 8, "h", "w"]), "takes 8 channels; latents have 4, .* 9"),
        ("pixel-text", lambda d: d["latent"].update(factor=2, size_multiple=2), "part vae_decoder is missing"),
        ("pixel", lambda d: d.update(clip_sample=0.0), r"clip_sample is 0\.0; it must be 0\.001"),
        ("pixel", lambda d: d["defaults"].update(guidance_scale=3.0), "there is no text to guide by"),
        (
            "pixel",
            lambda d: d["parts"]["unet"]["inputs"].append({"name": "text_embeds", "dtype": "float32", "shape": [1, 1]}),
            "the last of 0 text encoders gives none",
        ),
        ("sd15", _drop_tensor("unet", "inputs", "encoder_hidden_states"), "texts go in by encoder_hidden_states"),
        ("sd15", lambda d: d.update(zero_negative=1), "zero_negative is 1"),
        ("sd15", lambda d: d.update(embeddings=[{"word": "a"}]), r"embeddings\.file is missing"),
    ],
)
def test_malformed(
    changed: Callable[[str, Callable[[dict[str, Any]], Any]], Path],
    name: str,
    change: Callable[[dict[str, Any]], Any],
    message: str,
) -> None:
    with pytest.raises(BundleError, match=message):
        read_bundle(changed(name, change))


def test_carried_embeddings_of_two_text_encoders(family_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    vectors = {"clip_l": random.standard_normal((2, 16)), "clip_g": random.standard_normal((2, 32))}
    file = tmp_path / "dotty.safetensors"
    save_file({k: v.astype(np.float32) for k, v in vectors.items()}, file)
    root = export(
        family_bundle("sdxl").parent / "source", tmp_path / "out", precision="fp32", embeddings=[(None, file)]
    )
    plain = edgediff.load(family_bundle("sdxl"), threads=1)
    plain.load_textual_inversion(file)
    call: dict[str, Any] = {"prompt": "a dotty cat", "seed": 1, "num_inference_steps": 2}
    carrying = edgediff.load(root, threads=1)
    np.testing.assert_array_equal(carrying(**call).latents, plain(**call).latents)
    plain.unload_textual_inversion("dotty")
    assert np.abs(carrying(**call).latents - plain(**call).latents).max() > 1e-4
    found = read_bundle(root).embeddings[0].file
    (root / found.path).write_bytes(b"\0" * found.size)
    with pytest.raises(BundleError, match=r"embedding_0\.safetensors is damaged"):
        edgediff.load(root)("a dotty cat")
    other = edit(root, lambda d: d["embeddings"][0]["file"].update(sha256=sha256(root / found.path)))
    with pytest.raises(BundleError, match=r"embeddings: .* is not a safetensors file"):
        edgediff.load(other)("a dotty cat")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"clip_l": (1, 16), "clip_g": (2, 32)}, "clip_l and clip_g hold 1 and 2 tokens"),
        ({"clip_l": (1, 32), "clip_g": (1, 16)}, "has width 32 and 16; this model's text encoders have 16 and 32"),
        ({"emb_params": (1, 16)}, "has width 16; this model's text encoders have 16 and 32"),
    ],
)
def test_embeddings_that_do_not_fit_sdxl(
    family_bundle: Callable[[str], Path], tmp_path: Path, tensors: dict[str, tuple[int, int]], message: str
) -> None:
    file = tmp_path / "a.safetensors"
    save_file({name: np.ones(shape, np.float32) for name, shape in tensors.items()}, file)
    with pytest.raises(ArgumentError, match=message):
        edgediff.load(family_bundle("sdxl")).load_textual_inversion(file)
    with pytest.raises(ArgumentError, match=message):
        export(family_bundle("sdxl").parent / "source", tmp_path / "out", embeddings=[(None, file)])


@pytest.mark.parametrize(
    ("name", "folder", "change", "message"),
    [
        ("sd15", "unet", {"in_channels": 8}, r"the U-Net takes 8 channels, the autoencoder gives 4 \(9 with"),
        ("sd15", "unet", {"class_embed_type": "timestep"}, "class_embed_type is 'timestep'"),
        ("sd15", "unet", {"cross_attention_dim": 24}, "reads texts of width 24, the text encoders give 16"),
        ("sd15", "vae", {"latents_mean": [0.0] * 4}, "vae: latents_mean is"),
        ("pixel", "unet", {"in_channels": 1, "out_channels": 1}, "1 channels and no vae"),
        ("pixel", "unet", {"out_channels": 6}, "learned variances"),
        ("sd15", "vae", {"in_channels": 4, "out_channels": 4}, "vae: in_channels is 4, .* pictures have 3 channels"),
        (
            "sd15",
            "unet",
            {"down_block_types": ["DownBlock2D", "SimpleCrossAttnDownBlock2D"]},
            "unet: it has blocks SimpleCrossAttnDownBlock2D",
        ),
    ],
)
def test_checkpoints_that_cannot_run(
    family_bundle: Callable[[str], Path], tmp_path: Path, name: str, folder: str, change: dict[str, Any], message: str
) -> None:
    source = shutil.copytree(family_bundle(name).parent / "source", tmp_path / "source")
    path = source / folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BundleError, match=message):
        export(source, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_command(family_bundle: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.png"

    def generate(name: str, *arguments: str) -> str:
        """What the picture says, or the command on stderr."""
        model = ["--model", str(family_bundle(name)), "--steps", "1", "--seed", "1", "-o", str(out)]
        if cli.main(["generate", *arguments, *model]):
            return capsys.readouterr().err
        with Image.open(out) as image:
            return str(image.text["parameters"])

    picture, mask = tmp_path / "a.png", tmp_path / "mask.png"
    Image.new("RGB", (40, 40), "red").save(picture)
    Image.new("L", (40, 40), 255).save(mask)
    assert "Steps: 1" in generate("inpaint", "a cat", "--image", str(picture), "--mask", str(mask))
    assert "mask_image is missing" in generate("inpaint", "a cat", "--image", str(picture))
    sizes = ["--original-size", "64x40", "--crop", "3,5", "--target-size", "48x24"]
    assert "Original size: 64x40, Crop: 3 5, Target size: 48x24" in generate("sdxl", "a cat", *sizes)
    assert "original_size is 'big'" in generate("sdxl", "a cat", "--original-size", "big")
    assert "crops_coords_top_left is (1.5, 2)" in generate("sdxl", "a cat", "--crop", "1.5,2")
    scores = ["--aesthetic-score", "7", "--negative-aesthetic-score", "1"]
    assert "Aesthetic score: 7.0, Negative aesthetic score: 1.0" in generate("sdxl-refiner", "a cat", *scores)
    assert "Steps: 1" in generate("pixel")
    assert "takes no prompt" in generate("pixel", "a cat")
    assert "no prompt was given" in generate("sdxl")
    assert cli.main(["verify", str(family_bundle("inpaint"))]) == 0
    assert cli.main(["verify", str(family_bundle("pixel"))]) == 0


def test_states_that_later_layers_read_in_fp16(family_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    """SDXL's text encoders give states from within, without a norm between."""
    root = export(family_bundle("sdxl").parent / "source", tmp_path / "out", precision="fp16")
    assert [finding for finding in prove(edgediff.load(root, threads=1)) if not finding.ok] == []


def test_every_family_has_a_maker() -> None:
    assert set(PARTS) <= set(FAMILIES)
