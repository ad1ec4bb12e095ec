"""What a file is, told from its first bytes, so that a wrong one is named with the way on.

Nothing is trusted: reads are bounded, a safetensors header is parsed up to ``MAX_HEADER`` bytes, no pickle is opened.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import printable
from .files import open_regular

HEAD = 1024  # bytes that are read of any file
MAX_HEADER = 8 << 20  # bytes of a safetensors header; SDXL's is 0.3 MB
PICKLED = (".ckpt", ".pt", ".pth", ".bin")
POINTER = b"version https://git-lfs.github.com/spec/"
NEXT_FIELDS = (b"\x12", b"\x1a", b"\x22", b"\x28", b"\x32", b"\x3a", b"\x42")  # of an ONNX file, after its version
PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml")
# Beginnings of other formats.
BEGINNINGS = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GGUF", "a GGUF file, which this version does not read"),
    (b"\x89HDF", "an HDF5 file of Keras, which this version does not read"),
    (b"ftrt", "a TensorRT engine file: edgediff build makes them of a bundle, in the engine cache"),
    (b"\x1f\x8b", "a gzip archive: unpack it"),
    (b"7z\xbc\xaf", "a 7-Zip archive: unpack it"),
)
# What .safetensors files that people have look like, by what their names hold; the first match tells.
TEXT_ENCODERS = ("cond_stage_model.", "conditioner.embedders.")  # where a whole checkpoint has its text encoders
BARE_UNET = "a U-Net without its text encoder: give the whole checkpoint"
CONTENTS = (
    (("lora_", ".lora.", "hada_w1", "lokr_w1"), "a LoRA: give it as --lora to the export of a checkpoint"),
    (("double_blocks.", "joint_blocks."), "a model of the Flux or SD3 kind, which this version does not export"),
    (("control_model.", "controlnet_"), "a ControlNet, which this version does not export"),
    (("model.diffusion_model.",), BARE_UNET),
    (("decoder.up.", "decoder.up_blocks."), "an autoencoder: give it as --vae to the export of a checkpoint"),
    (("down_blocks.", "up_blocks."), "one part of a diffusers folder: give the folder with model_index.json"),
    (("emb_params", "clip_g"), "a textual inversion: give it as --embedding to the export of a checkpoint"),
)


@dataclass(frozen=True)
class Look:
    """A kind of file, and what to say of this one: ``it is {says}``."""

    kind: str
    says: str


def look_at(path: Path) -> Look | None:
    """Tell what the file at ``path`` is; None where it cannot be read or told."""
    try:
        if not path.is_file():
            return None
        with open_regular(path) as f:
            size = os.fstat(f.fileno()).st_size
            head = f.read(HEAD) or b""  # None where a special file has nothing yet
        header = _header(path, size)
    except OSError:
        return None
    if not head:
        return Look("empty", "empty (0 bytes): fetch or copy it again")
    if head.startswith(POINTER):
        return Look(
            "pointer", f"a Git-LFS pointer{_stands_for(head)}, not the file: run git lfs pull where it was cloned"
        )
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(PAGES):
        return Look("page", "a web page, not the file: the download gave a page, perhaps to log in; fetch it again")
    if header is not None:
        return header
    for beginning, says in BEGINNINGS:
        if head.startswith(beginning):
            return Look("other", says)
    if head.startswith(b"PK"):
        first = head[30 : 30 + int.from_bytes(head[26:28], "little")]  # the name of the archive's first file
        saved = first.endswith(b"/data.pkl") or path.suffix in PICKLED
        return _pickle(path) if saved else Look("other", "a zip archive: unpack it")
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return _pickle(path)
    if head[:1] == b"\x08" and b"\x01" <= head[1:2] < b"\x20" and head[2:3] in NEXT_FIELDS:
        return Look("onnx", "one ONNX graph")
    if text.startswith((b"{", b"[")):
        return Look("json", "a JSON file")
    if _is_text(head):
        return Look("text", f"a text, which begins {head[:40].decode('utf-8', 'replace').splitlines()[0]!r}")
    return None


def stand_in(path: Path) -> str | None:
    """Say what a file is that only stands for another: a pointer, a page, an empty or a cut one; else None."""
    look = look_at(path)
    return look.says if look is not None and look.kind in ("empty", "pointer", "page", "cut") else None


def not_safetensors(path: Path, error: object) -> str:
    """Say why a file is not the safetensors file that it should be; ``error`` is what the library says of it."""
    look = look_at(path)
    if look is not None and look.kind == "cut":
        return f"{path} is {look.says}"
    said = f"it is {look.says}" if look else printable(str(error)[:200])  # a library may repeat the whole file
    return f"{path} is not a safetensors file: {said}"


def looks_like(names: Any) -> str | None:
    """Say what a .safetensors file with tensors of these names seems to be; None where that cannot be told."""
    joined = " ".join(names)
    return next((look for marks, look in CONTENTS if any(mark in joined for mark in marks)), None)


def convert_command(path: Path) -> str:
    """Give the command that makes a .safetensors file of what ``torch.save`` wrote."""
    from shlex import quote

    code = (
        "import sys, torch; from safetensors.torch import save_file; "
        "d = torch.load(sys.argv[1], map_location='cpu', weights_only=True); p = d.get('string_to_param'); "
        "d = {'emb_params': p['*']} if p else d.get('state_dict', d); "
        "save_file({k: v.detach().contiguous().clone() for k, v in d.items() if torch.is_tensor(v)}, sys.argv[2])"
    )
    return f'python -c "{code}" {quote(str(path))} {quote(str(path.with_suffix(".safetensors")))}'


def _stands_for(head: bytes) -> str:
    for line in head.decode("ascii", "replace").splitlines():
        name, _, value = line.partition(" ")
        if name == "size" and value.isdecimal() and len(value) < 20:
            return f" (it stands for {int(value):,} bytes)"
    return ""


def _header(path: Path, size: int) -> Look | None:
    """Look at a safetensors file: 8 bytes that say how long its header is, the header in JSON, the tensors."""
    with open_regular(path) as f:
        length = int.from_bytes(f.read(8), "little")
        if size < 9 or length > max(MAX_HEADER, size) or f.read(1) != b"{":
            return None
        if length + 8 > size:
            return Look("cut", f"cut: its header alone has {length:,} bytes, the file {size:,}; fetch or copy it again")
        if length > MAX_HEADER:
            return Look("safetensors", "a .safetensors file")
        raw = b"{" + f.read(length - 1)
    try:
        tensors = {k: v for k, v in json.loads(raw).items() if k != "__metadata__"}
        end = 8 + length + max((int(t["data_offsets"][1]) for t in tensors.values()), default=0)
        cut = end > size and f"its tensors end at byte {end:,}"  # which an int of any length may not be written as
    except (ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError, OverflowError):
        return None
    if cut:
        return Look("cut", f"cut: {cut}, the file at {size:,}; fetch or copy it again")
    found = looks_like(tensors)
    if found in (None, BARE_UNET) and any(name.startswith(TEXT_ENCODERS) for name in tensors):
        return Look("checkpoint", "a checkpoint")
    return Look("safetensors", found or f"a .safetensors file of {len(tensors)} tensors")


def _pickle(path: Path) -> Look:
    return Look("pickle", f"a file of torch.save, which could run code; convert it first: {convert_command(path)}")


def _is_text(head: bytes) -> bool:
    try:
        shown = head[: HEAD - 3].decode("utf-8")
    except UnicodeDecodeError:
        return False
    return all(c.isprintable() or c in "\t\r\n" for c in shown)
