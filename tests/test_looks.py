"""What a file is, told from its first bytes; files that no library here wrote are made by hand."""

from __future__ import annotations

import shlex
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from edgediff.looks import HEAD, look_at, looks_like, stand_in

ROOT = Path(__file__).parents[1]
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 4265380512\n"
)


def tensors(*names: str) -> bytes:
    return save({name: np.zeros(3, np.float32) for name in names})


WHOLE = tensors("a", "b")
SD = tensors("cond_stage_model.transformer.text_model.x", "model.diffusion_model.y", "first_stage_model.decoder.up.0")


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        (b"", "empty", "empty (0 bytes)"),
        (POINTER, "pointer", "a Git-LFS pointer (it stands for 4,265,380,512 bytes)"),
        (POINTER[:60], "pointer", "a Git-LFS pointer, not the file"),
        (b"<!DOCTYPE html><html>", "page", "a web page"),
        (b"\xef\xbb\xbf\r\n <HTML lang=en>", "page", "a web page"),
        (WHOLE, "safetensors", "a .safetensors file of 2 tensors"),
        (WHOLE[:-1], "cut", "cut: its tensors end at byte"),
        (WHOLE[:40], "cut", "cut: its header alone has"),
        (SD, "checkpoint", "a checkpoint"),
        (tensors("conditioner.embedders.0.x", "model.diffusion_model.y"), "checkpoint", "a checkpoint"),
        (tensors("model.diffusion_model.y"), "safetensors", "a U-Net without its text encoder"),
        (tensors("cond_stage_model.x", "control_model.y"), "safetensors", "a ControlNet"),
        (tensors("lora_unet_x.lora_down.weight"), "safetensors", "a LoRA: give it as --lora"),
        (tensors("emb_params"), "safetensors", "a textual inversion"),
        (tensors("double_blocks.0.img_attn"), "safetensors", "a model of the Flux or SD3 kind"),
        (tensors("encoder.x", "decoder.up.1"), "safetensors", "an autoencoder: give it as --vae"),
        (tensors("down_blocks.0.x"), "safetensors", "one part of a diffusers folder"),
        (b"\x89PNG\r\n\x1a\n", "other", "a PNG picture"),
        (b"GGUF\x03\0\0\0", "other", "a GGUF file"),
        (b"PK\x03\x04" + bytes(22) + struct.pack("<HH", 5, 0) + b"a.txt", "other", "a zip archive"),
        (b'{"_class_name": "X"}', "json", "a JSON file"),
        (b"a text\nof two lines", "text", "a text, which begins 'a text'"),
    ],
)
def test_kinds(tmp_path: Path, content: bytes, kind: str, says: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    look = look_at(path)
    assert look is not None
    assert (look.kind, look.says[: len(says)]) == (kind, says)
    assert (stand_in(path) is not None) == (kind in ("empty", "pointer", "page", "cut"))


def test_files_of_this_repository() -> None:
    emoji = ROOT / "edgediff" / "models" / "emoji"
    kinds = {name: getattr(look_at(emoji / name), "kind", None) for name in ("unet.onnx", "bundle.json", "LICENSE")}
    assert kinds == {"unet.onnx": "onnx", "bundle.json": "json", "LICENSE": "text"}
    weights = ROOT / "export" / "reference_model" / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors"
    assert stand_in(weights) is None
    assert looks_like(load_file(weights)) == "one part of a diffusers folder: give the folder with model_index.json"


@pytest.mark.parametrize(
    "content",
    [
        *(bytes([first]) for first in range(256)),
        bytes(range(256)) * 8,
        struct.pack("<Q", 1 << 60) + b"{" + bytes(100),  # a header longer than any memory
        struct.pack("<Q", 2000) + b"{" + b'"a":[' * 400 + bytes(2000),
        struct.pack("<Q", 24) + b'{"a":{"data_offsets":5}}' + bytes(9),
        struct.pack("<Q", 50_003) + b"{" + b'"a":[' * 10_000 + b"{}" + bytes(9),  # deeper than Python reads
        b"\x80\x02",
        b"PK\x03\x04",
        "é".encode()[:1] * HEAD,
        "é".encode() * HEAD,
    ],
)
def test_hostile_and_short_files_are_told_or_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    look = look_at(path)
    assert look is None or look.says


def test_what_is_no_file(tmp_path: Path) -> None:
    assert look_at(tmp_path) is None
    assert look_at(tmp_path / "nowhere") is None
    assert look_at(Path("/dev/zero")) is None


@pytest.mark.slow
@pytest.mark.parametrize("form", ["zip", "pickle", "lightning", "embedding"])
def test_the_command_that_converts_what_torch_saved(torch: object, tmp_path: Path, form: str) -> None:
    """Run as a shell runs it."""
    import torch as library

    weights = {"a": library.arange(6.0).reshape(2, 3).T, "b": library.ones(2)}
    weights["tied"] = weights["b"]
    found = {
        "lightning": {"state_dict": weights, "global_step": 3},
        "embedding": {"string_to_param": {"*": weights["a"]}},
    }
    path = tmp_path / "my model.ckpt"
    library.save(found.get(form, weights), path, _use_new_zipfile_serialization=form != "pickle")
    look = look_at(path)
    assert look is not None
    assert look.kind == "pickle"
    command = look.says.partition("convert it first: ")[2]
    program, *arguments = shlex.split(command)
    assert program == "python"
    subprocess.run([sys.executable, *arguments], check=True)
    made = load_file(tmp_path / "my model.safetensors")
    assert set(made) == ({"emb_params"} if form == "embedding" else set(weights))
    np.testing.assert_array_equal(next(iter(made.values())), weights["a"].numpy())
