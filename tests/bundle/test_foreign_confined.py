"""Another exporter's folder is read inside itself alone, within bounds, and every wrong config is a typed error."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx", reason="onnx, which writes the graphs, is not installed (extra test)")

import edgediff
from edgediff import BundleError
from edgediff.bundle.bounds import MAX_CONFIG
from edgediff.bundle.reading import read_bundle
from edgediff.prompts.tokenizer_bounds import MAX_TOKENIZER

from ..support.foreign import make_foreign

Folder = Callable[[], Path]
FILES = ("model_index.json", "unet/config.json", "unet/model.onnx", "vae_decoder/model.onnx",
         "scheduler/scheduler_config.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json",
         "tokenizer/special_tokens_map.json")  # fmt: skip
OLDER = ("tokenizer/vocab.json", "tokenizer/merges.txt")  # where there is no tokenizer.json


@pytest.fixture(scope="module")
def made(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_foreign(tiny_bundle, tmp_path_factory.mktemp("foreign") / "tiny")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Folder:
    return lambda: Path(shutil.copytree(made, tmp_path / "tiny"))


def link(path: Path, target: str | Path) -> None:
    try:
        path.symlink_to(target)
    except OSError as error:
        pytest.skip(f"no links here: {error}")


def prepared(root: Path, name: str) -> Path:
    if name in OLDER:
        (root / "tokenizer" / "tokenizer.json").unlink()
    read_bundle(root)
    return root


@pytest.mark.parametrize("name", FILES + OLDER)
def test_a_file_outside_is_refused(folder: Folder, name: str) -> None:
    root = prepared(folder(), name)
    (root / name).rename(root.parent / "outside")
    link(root / name, root.parent / "outside")
    with pytest.raises(BundleError, match="is a link out of"):
        read_bundle(root)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes by name here")
@pytest.mark.parametrize("name", FILES + OLDER)
def test_a_pipe_is_no_file(folder: Folder, name: str) -> None:
    """It is missing then, or refused; nothing waits."""
    root = prepared(folder(), name)
    (root / name).unlink()
    os.mkfifo(root / name)
    try:
        read_bundle(root)
    except BundleError:
        assert name not in ("tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json")
    else:
        assert name not in ("unet/model.onnx", "vae_decoder/model.onnx", "scheduler/scheduler_config.json")


def test_a_folder_in_a_hubs_cache_opens(folder: Folder, tmp_path: Path) -> None:
    revision = tmp_path / "hub" / "snapshots" / "0123abc"
    shutil.copytree(folder(), revision)
    (revision / "tokenizer" / "tokenizer.json").unlink()
    blobs = revision.parents[1] / "blobs"
    blobs.mkdir()
    for k, path in enumerate(sorted(p for p in revision.rglob("*") if p.is_file())):
        path.rename(blobs / f"{k}")
        link(path, os.path.relpath(blobs / f"{k}", path.parent))
    assert edgediff.load(revision)("a cat", seed=1, num_inference_steps=1, height=16, width=16).images


@pytest.mark.parametrize(
    ("name", "most"), [("unet/config.json", MAX_CONFIG), ("tokenizer/tokenizer.json", MAX_TOKENIZER)]
)
def test_a_config_that_is_too_long(folder: Folder, name: str, most: int) -> None:
    root = folder()
    with (root / name).open("ab") as f:
        f.truncate(1 << 40)
    with pytest.raises(BundleError, match=f"it holds more than {most} bytes"):
        read_bundle(root)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("scheduler/scheduler_config.json", {"_class_name": None}, "_class_name is None"),
        ("scheduler/scheduler_config.json", {"_class_name": ["a"]}, r"_class_name is \['a'\]"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}, "num_train_timesteps"),
        ("unet/config.json", {"sample_size": 10**15}, r"defaults\.(width|height) is"),
        ("unet/config.json", {"sample_size": 10**400}, "a whole number of 401 digits"),
        ("unet/config.json", {"block_out_channels": [1] * 13}, "block_out_channels is"),
        ("vae_decoder/config.json", {"scaling_factor": 1e-9}, r"latent\.scale is 1e-09"),
        ("vae_decoder/config.json", {"x": "\ud800"}, "half a character"),
    ],
)
def test_configs_beyond_their_bounds(folder: Folder, name: str, changes: dict[str, Any], said: str) -> None:
    root = folder()
    data = json.loads((root / name).read_text(encoding="utf-8"))
    (root / name).write_text(json.dumps(data | changes), encoding="utf-8")
    with pytest.raises(BundleError, match=said):
        read_bundle(root)


def test_an_infinity_that_diffusers_writes(folder: Folder) -> None:
    root = folder()
    path = root / "scheduler" / "scheduler_config.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(data | {"lambda_min_clipped": float("-inf")}), encoding="utf-8")
    assert read_bundle(root).schedule.lambda_min_clipped is None


def test_special_tokens_that_lie_too_deep(folder: Folder) -> None:
    root = folder()
    (root / "tokenizer" / "special_tokens_map.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(BundleError, match="the special tokens cannot be read"):
        read_bundle(root)
