"""A .safetensors file is read by its header: names and shapes, then single tensors, and what it looks like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open

from edgediff.errors import BundleError, BundleNotFoundError

Shapes = Mapping[str, tuple[int, ...]]
PICKLED = (".ckpt", ".pt", ".pth", ".bin")
# What files that people have look like, by what their names hold; the first match tells.
LOOKS = (
    (("lora_", ".lora.", "hada_w1", "lokr_w1"), "a LoRA: give it as --lora to the export of a checkpoint"),
    (("double_blocks.", "joint_blocks."), "a model of the Flux or SD3 kind, which this version does not export"),
    (("control_model.", "controlnet_"), "a ControlNet, which this version does not export"),
    (("model.diffusion_model.",), "a U-Net without its text encoder: give the whole checkpoint"),
    (("decoder.up.", "decoder.up_blocks."), "an autoencoder: give it as --vae to the export of a checkpoint"),
    (("down_blocks.", "up_blocks."), "one part of a diffusers folder: give the folder with model_index.json"),
    (("emb_params", "clip_g"), "a textual inversion: give it as --embedding to the export of a checkpoint"),
)


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Read names and shapes of a safetensors file's tensors, and its metadata; no tensor is read.

    Raises:
        BundleNotFoundError: no such file.
        BundleError: another format, or a file that was cut.
    """
    if not path.is_file():
        raise BundleNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, "pt") as f:
            return {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}, dict(f.metadata() or {})  # noqa: SIM118
    except Exception as error:  # the library raises its own
        with path.open("rb") as f:
            first = f.read(2)
        pickled = path.suffix in PICKLED or first == b"PK" or first[:1] == b"\x80"  # torch.save's zip, or its pickle
        advice = (
            "; a .ckpt or .pt file must be converted first (torch.load with weights_only=True, then "
            "safetensors.torch.save_file)"
        )
        raise BundleError(f"{path} is not a safetensors file: {error}{advice if pickled else ''}") from error


def hollow_tensors(shapes: Shapes) -> dict[str, torch.Tensor]:
    """Make tensors of these shapes without data."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def read_tensors(path: Path, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Read those tensors; floats in float32, each widened before the next is read."""
    with safe_open(path, "pt") as f:
        return {name: t.float() if (t := f.get_tensor(name)).is_floating_point() else t for name in names}


def map_tensors(path: Path, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Map those tensors, in the file's own types; nothing is read."""
    with safe_open(path, "pt") as f:
        return {name: f.get_tensor(name) for name in names}


def looks_like(shapes: Shapes) -> str | None:
    """Say what a file that is no checkpoint seems to be, and what to do with it; None for anything else."""
    names = " ".join(shapes)
    return next((look for marks, look in LOOKS if any(mark in names for mark in marks)), None)
