"""``load`` given what is no bundle: what it is, and the command that goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import edgediff
from edgediff import BundleError, BundleNotFoundError
from edgediff.cli import main as cli

from ..test_looks import POINTER, SD, WHOLE, tensors

ROOT = Path(__file__).parents[2]
PIPELINE = ROOT / "export" / "reference_model" / "pipeline"  # a diffusers folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    """A folder with one of each. Read-only."""
    tmp_path = tmp_path_factory.mktemp("place")
    shutil.copytree(PIPELINE, tmp_path / "my model")
    shutil.copytree(tiny_bundle, tmp_path / "bundles" / "tiny")
    shutil.copytree(PIPELINE, tmp_path / "models--a--b" / "snapshots" / "c0ffee")
    for folder in ("empty", "one", ".out.partial/bundle", "parts/unet"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "parts" / "model_index.json").write_text("{}", encoding="utf-8")
    (tmp_path / "theirs" / "unet").mkdir(parents=True)
    (tmp_path / "theirs" / "model_index.json").write_text("{}", encoding="utf-8")
    shutil.copy(tiny_bundle / "unet.onnx", tmp_path / "theirs" / "unet" / "model.onnx")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(
        json.dumps({"_class_name": "UNet2DConditionModel"}), encoding="utf-8"
    )
    shutil.copy(tiny_bundle / "unet.onnx", tmp_path / "one.onnx")
    contents = {
        "sd.safetensors": SD,
        "one/sd.safetensors": SD,
        "lora.safetensors": tensors("lora_unet_x.lora_down.weight"),
        "cut.safetensors": WHOLE[:-1],
        "lfs.safetensors": POINTER,
        "page.safetensors": b"<!doctype html>",
        "void": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That folder, in which a user stands."""
    monkeypatch.chdir(place)
    return place


RUN = "run: edgediff export"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("my model", f"it is a diffusers folder; {RUN} 'my model' 'my model-bundle'"),
        ("my model/model_index.json", f"it is the index of a diffusers folder; {RUN} 'my model' 'my model-bundle'"),
        (
            "my model/unet",
            f"it is one part of a model, a UNet2DConditionModel; {RUN} '{{here}}/my model' 'my model-bundle'",
        ),
        ("unet", "it is one part of a model, a UNet2DConditionModel; give the folder with model_index.json"),
        (
            "parts",
            "it has no bundle.json, and its model_index.json names parts whose weights are not in it: fetch the whole",
        ),
        (
            "models--a--b",
            f"it is a hub's cache of a diffusers folder; {RUN} models--a--b/snapshots/c0ffee c0ffee-bundle",
        ),
        ("theirs/unet/model.onnx", "it is one ONNX graph of several: give the folder of them all, theirs"),
        ("bundles", "it has no bundle.json; there are bundles in it: tiny"),
        ("bundles/tiny/bundle.json", "it is a bundle's manifest: give its folder, bundles/tiny"),
        ("sd.safetensors", f"it is a checkpoint; {RUN} sd.safetensors sd-bundle"),
        (
            "one",
            f"it has no bundle.json; it holds sd.safetensors, which is a checkpoint; {RUN} one/sd.safetensors"
            " sd-bundle",
        ),
        ("lora.safetensors", "it is a LoRA: give it as --lora to the export of a checkpoint"),
        ("one.onnx", "it is one ONNX graph; a bundle is made of a whole checkpoint: edgediff export CHECKPOINT OUT"),
        ("cut.safetensors", "it is cut: its tensors end at byte"),
        (
            "lfs.safetensors",
            "it is a Git-LFS pointer (it stands for 4,265,380,512 bytes), not the file: run git lfs pull",
        ),
        ("page.safetensors", "it is a web page, not the file"),
        ("void", "it is empty (0 bytes)"),
        ("empty", "it has no bundle.json, it is empty"),
        (
            "out",
            "it is not a folder; an export to it is unfinished, in .out.partial: give the same edgediff export again",
        ),
        (
            ".out.partial",
            "it is an export that has not finished: give the same edgediff export again; the bundle will be out",
        ),
        (".out.partial/bundle", "it is an export that has not finished: give the same edgediff export again"),
        (
            "runwayml/stable-diffusion-v1-5",
            "it is not a folder; if a hub has a model of that name, nothing is downloaded here: "
            "hf download runwayml/stable-diffusion-v1-5 --local-dir stable-diffusion-v1-5 && "
            "edgediff export stable-diffusion-v1-5 stable-diffusion-v1-5-bundle",
        ),
        ("https://hub.example/a/b", "it is not a folder; nothing is downloaded: fetch it yourself, and give its path"),
    ],
)
def test_what_it_is_and_the_way_on(here: Path, capsys: pytest.CaptureFixture[str], path: str, message: str) -> None:
    with pytest.raises(BundleNotFoundError) as caught:
        edgediff.load(path)
    said = f"no bundle at {Path(path)}: {message.replace('{here}', str(here.resolve()))}"
    assert str(caught.value)[: len(said)] == said
    assert cli.main(["generate", "a cat", "--model", path]) == 2
    assert capsys.readouterr().err == f"edgediff: {caught.value}\n"


def test_a_path_beside_a_folder_is_no_hub_name(here: Path) -> None:
    with pytest.raises(BundleNotFoundError, match=r"no bundle at one/missing: it is not a folder$"):
        edgediff.load("one/missing")


def test_files_of_a_bundle_that_stand_for_others(damaged: Callable[[], Path]) -> None:
    """A clone without Git-LFS."""
    root = damaged()
    (root / "unet.onnx").write_bytes(POINTER)
    with pytest.raises(BundleError, match=r"unet\.onnx has 135 bytes, the manifest says \d+; it is a Git-LFS pointer"):
        edgediff.load(root).engine("unet")
    (root / "bundle.json").write_bytes(POINTER)
    with pytest.raises(BundleError, match=r"bundle\.json is a Git-LFS pointer"):
        edgediff.load(root)


def test_graphs_beside_torch(place: Path, tmp_path: Path) -> None:
    """A folder with a graph of one part, and a U-Net of torch, is diffusers'."""
    folder = Path(shutil.copytree(PIPELINE, tmp_path / "model"))
    (folder / "safety_checker").mkdir()
    shutil.copy(place / "one.onnx", folder / "safety_checker" / "model.onnx")
    with pytest.raises(BundleNotFoundError, match="model: it is a diffusers folder; run: edgediff export"):
        edgediff.load(folder)
    with pytest.raises(BundleError, match=r"it is the index of a folder of ONNX graphs: give the folder, .*theirs"):
        edgediff.load(place / "theirs" / "model_index.json")
