"""diffusers' own pipeline on a folder, with every release that can be exported from."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline


def open_reference(source: Path, **absent: None) -> Any:
    """The pipeline in float32 (transformers 5 would keep fp16 files so), silent. ``absent`` names parts left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        absent = {"safety_checker": None, **absent} if "safety" in (source / "model_index.json").read_text() else absent
        pipe = DiffusionPipeline.from_pretrained(
            str(source), local_files_only=True, torch_dtype=torch.float32, **absent
        )
    pipe.set_progress_bar_config(disable=True)
    for name in ("text_encoder", "text_encoder_2"):
        encoder = getattr(pipe, name, None)
        if encoder is not None and not hasattr(encoder, "text_model"):
            # For clip_skip diffusers 0.42 asks for an inner module that transformers 5 took out. Not a submodule.
            object.__setattr__(encoder, "text_model", encoder)
    return pipe
