"""Sources whose files are something else: named at once, with the way on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from edgediff import ArgumentError, BundleError, BundleNotFoundError
from edgediff.prompts.textual_inversion import read_embedding
from edgediff_export.convert import export
from edgediff_export.lora.file import read_lora
from edgediff_export.sources.open import open_source
from edgediff_export.sources.single_file import SingleFile

from ..test_looks import POINTER, SD, tensors

KINDS = {"pointer": (POINTER, "a Git-LFS pointer"), "page": (b"<html>", "a web page"), "empty": (b"", "empty")}


@pytest.fixture
def source(tiny_source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_source, tmp_path / "source"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "vae/config.json",
        "tokenizer/tokenizer_config.json",
        "model_index.json",
    ],
)
def test_files_of_a_folder(source: Path, kind: str, name: str) -> None:
    content, said = KINDS[kind]
    (source / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name} is {said}"):
        export(source, source.parent / "out")
    assert [p.name for p in source.parent.iterdir()] == ["source"]


def test_pickled_weights_that_a_clone_left_out_do_not_matter(source: Path) -> None:
    (source / "unet" / "diffusion_pytorch_model.bin").write_bytes(POINTER)
    assert open_source(source).has("unet")


def test_configs_alone_will_do_for_a_single_file(source: Path, tmp_path: Path) -> None:
    """The weights of ``--config`` are not read."""
    (source / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(POINTER)
    (tmp_path / "sd.safetensors").write_bytes(SD)
    with pytest.raises(BundleError, match="text_encoder: 1 weights have no place in the text encoder"):
        SingleFile(tmp_path / "sd.safetensors", source)


def test_an_empty_tokenizer_folder(source: Path) -> None:
    for path in (source / "tokenizer").iterdir():
        path.unlink()
    with pytest.raises(BundleNotFoundError, match=r"tokenizer has neither tokenizer\.json nor vocab\.json and merges"):
        export(source, source.parent / "out")


@pytest.mark.parametrize("kind", KINDS)
def test_single_files(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(KINDS[kind][0])
    for read in (open_source, read_lora):
        with pytest.raises(BundleError, match=rf"model\.safetensors is not a safetensors file: it is {KINDS[kind][1]}"):
            read(path)
    with pytest.raises(ArgumentError, match=rf"model\.safetensors is not a safetensors file: it is {KINDS[kind][1]}"):
        read_embedding(path)


def test_wrong_things(tmp_path: Path, tiny_bundle: Path, tiny_source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(1)}, "a.ckpt")
    Path("lora.safetensors").write_bytes(tensors("lora_unet_x.lora_down.weight"))
    Path("folder").mkdir()
    Path("folder/sd.safetensors").write_bytes(SD)
    hub = "nothing is downloaded here: hf download runwayml/sd-v1.5 --local-dir sd-v1.5 && edgediff export sd-v1.5"
    for path, said in {
        "runwayml/sd-v1-5": "it has no model_index.json; if a hub has a model of that name, nothing is downloaded here",
        "runwayml/sd-v1.5": hub,
        "a.ckpt": "it is a file of torch.save, which could run code; convert it first: python",
        "lora.safetensors": "looks like a LoRA: give it as --lora",
        "folder": "it holds sd.safetensors, which is a checkpoint; run: edgediff export folder/sd.safet",
        str(tiny_bundle): "it is a bundle already; run: edgediff generate PROMPT --model",
        str(tiny_bundle / "unet.onnx"): "it is one ONNX graph",
        str(tiny_source / "unet"): f"a UNet2DConditionModel; run: edgediff export {tiny_source}",
    }.items():
        with pytest.raises(BundleError) as caught:
            export(path, "out")
        assert said in str(caught.value), path
    with pytest.raises(BundleNotFoundError, match="no LoRA file at a/b; if a hub has a model of that name, nothing is"):
        read_lora("a/b")
