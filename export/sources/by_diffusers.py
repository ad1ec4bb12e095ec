"""diffusers reads a single file by its own ``from_single_file``, with configs from a folder that is written here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import single_file_utils

from .loading import model_class, ready
from .weight_files import file_dtypes
from .widening import HALF, compute_wide


def read_by_diffusers(
    path: Path, component: str, name: str, config: Mapping[str, Any], folder: Path, wide: bool
) -> Any:
    """Load a component of a single file as diffusers reads it, in float32 and in eval mode.

    Args:
        path: the file.
        component: as diffusers names it.
        name: its class.
        config: its settings.
        folder: where they are written for diffusers, which takes configs from files alone.
        wide: hold the weights in float32; else a file in half precision stays so, widened as it is used.

    Raises:
        ValueError, KeyError and others of diffusers': it cannot read this file.
    """
    if path.suffix != ".safetensors":  # diffusers goes by the name, and would unpickle what is inside
        raise ValueError(f"{path.name} is not named .safetensors")
    cls, place = model_class(name), folder / component
    place.mkdir(parents=True, exist_ok=True)
    if name.startswith("CLIP"):
        cls.config_class(**config).save_pretrained(place)
        # What StableDiffusionPipeline.from_single_file calls for this component.
        checkpoint = single_file_utils.load_single_file_checkpoint(str(path), local_files_only=True)
        model = single_file_utils.create_diffusers_clip_model_from_ldm(
            cls,
            checkpoint=checkpoint,
            config=str(folder),
            subfolder=component,
            torch_dtype=torch.float32,
            local_files_only=True,
        )
    else:
        (place / "config.json").write_text(json.dumps({"_class_name": name, **config}), encoding="utf-8")
        model = cls.from_single_file(
            str(path),
            config=str(folder),
            subfolder=component,
            local_files_only=True,
            torch_dtype=torch.float32 if wide else _stored(path),
        )
    if empty := [key for key, tensor in model.state_dict().items() if tensor.is_meta]:
        raise ValueError(f"{name}.from_single_file finds no {empty[0]}")
    return compute_wide(ready(model, component, path))


def _stored(path: Path) -> torch.dtype:
    """The type to hold weights in: half precision where the whole file is in it."""
    kinds = file_dtypes(path)
    return next(iter(kinds)) if len(kinds) == 1 and kinds <= HALF else torch.float32
