"""A bundle's manifest tells what the checkpoint is, before any weight is read, and which files the bundle holds."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import onnx

import edgediff
from edgediff.bundle.manifest import MANIFEST, PLAIN, WEIGHTS, Defaults, sha256
from edgediff.bundle.reading import FORMAT
from edgediff.bundle.scheduler_config import as_run, default_steps, schedule_of
from edgediff.errors import ArgumentError, BundleError, choices
from edgediff.sampling.names import from_config

from .latent_facts import check_unet, latent_facts
from .onnx_graph.graph import WrittenFile
from .precision.precisions import PLAIN_NAME
from .sources.base import Source, encoders_of

DRAFT_MANIFEST = f"draft-{MANIFEST}"  # its name as long as its bundle is not whole
ONNX_TYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64", onnx.TensorProto.FLOAT16: "float16"}


def model_facts(source: Source, defaults: dict[str, Any], vae_shift: bool = False) -> dict[str, Any]:
    """Make the manifest without its files.

    Args:
        source: the checkpoint.
        defaults: override its defaults (size, steps, ...).
        vae_shift: decode with the autoencoder's ``shift_factor``, which diffusers' pipelines of these leave out.

    Raises:
        BundleError: what the runtime cannot run.
    """
    unet = source.hollow("unet").config
    check_unet(source, unet)
    large = unet.get("addition_embed_type") == "text_time"
    latent = latent_facts(source, unet, vae_shift)
    scheduler = scheduler_of(source)
    clip = scheduler.get("clip_sample_range", 1.0) if scheduler.get("clip_sample") else None
    if clip is not None and latent["factor"] > 1:
        raise BundleError("scheduler: clip_sample is True, which is for models of pixels")
    text = [_text(source, *pair) for pair in encoders_of(source)]
    width = sum(source.hollow(encoder).config.hidden_size for encoder, _ in encoders_of(source))
    if text and width != unet.cross_attention_dim:
        raise BundleError(f"the U-Net reads texts of width {unet.cross_attention_dim}, the text encoders give {width}")
    cells = unet.sample_size if isinstance(unet.sample_size, (list, tuple)) else [unet.sample_size or 64] * 2
    facts = {
        "format": FORMAT,
        "name": "",
        "kind": "pixel" if latent["factor"] == 1 else "stable-diffusion-xl" if large else "stable-diffusion",
        "schedule": schedule_of(scheduler),
        "latent": latent,
        "defaults": {
            "width": cells[1] * latent["factor"],
            "height": cells[0] * latent["factor"],
            **default_steps(scheduler, unet, bool(text), large),
            "sampler": (from_config(scheduler) or ("ddim", None))[0],
            **defaults,
        },
        "text": text,
    }
    if large and source.setting("force_zeros_for_empty_prompt") is not False:  # what diffusers assumes
        facts["zero_negative"] = True
    if clip is not None:
        facts["clip_sample"] = float(clip)
    _check_defaults(facts)
    return facts


def scheduler_of(source: Source) -> dict[str, Any]:
    """Return the scheduler's config as diffusers' pipeline of that class runs it."""
    return as_run(source.scheduler(), source.pipeline, source.has("vae"))


def _check_defaults(facts: dict[str, Any]) -> None:
    """Raise ``ArgumentError`` for defaults that no call could use."""
    defaults, multiple = facts["defaults"], facts["latent"]["size_multiple"]
    known = [f.name for f in dataclasses.fields(Defaults)]
    if unknown := [name for name in defaults if name not in known]:
        raise ArgumentError(f"no default {unknown[0]!r}; choose from {choices(known)}")
    for side in ("width", "height"):
        if defaults[side] < 1 or defaults[side] % multiple:
            raise ArgumentError(
                f"the default {side} is {defaults[side]}; it must be a multiple of {multiple}: give another default by "
                "--size WxH"
            )
    if not facts["text"] and defaults["guidance_scale"] > 1:
        raise ArgumentError(
            f"the default guidance_scale is {defaults['guidance_scale']}; a model without text has none"
        )
    schedule = edgediff.Schedule(**facts["schedule"])
    edgediff.plan(schedule, defaults["sampler"], defaults["num_inference_steps"], float(defaults["guidance_scale"]))


def _text(source: Source, encoder: str, tokenizer: str) -> dict[str, Any]:
    """Describe what a text encoder reads."""
    loaded, config = source.tokenizer(tokenizer), source.hollow(encoder).config
    if getattr(config, "use_attention_mask", False) and "XL" not in source.pipeline:  # SDXL's pipelines do not read it
        raise BundleError(
            f"{encoder}: use_attention_mask is {config.use_attention_mask!r}: diffusers' {source.pipeline} then hides "
            "the filling behind a prompt from the text encoder, which this version cannot run; it takes False"
        )
    return {
        "max_length": min(loaded.model_max_length, config.max_position_embeddings),
        "pad_id": loaded.pad_token_id,
    }


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest as JSON into a bundle's folder. It is a draft until the bundle is whole: the folder does not
    look like a bundle.
    """
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (folder / DRAFT_MANIFEST).write_text(text, encoding="utf-8")


def graph_entries(files: list[WrittenFile], precision: str) -> list[dict[str, Any]]:
    """Describe the files of a part as the manifest lists them."""
    return [
        {
            "engine": _engine(f.path.name),
            "precision": precision,
            "path": f.path.name,
            "size": f.size,
            "sha256": f.sha256,
        }
        for f in files
    ]


def _engine(name: str) -> str:
    return WEIGHTS if name.endswith(".data") else PLAIN if name.endswith(PLAIN_NAME) else "onnx"


def file_entry(folder: Path, path: Path, engine: str, precision: str) -> dict[str, Any]:
    """Describe any other file as the manifest lists it."""
    return {
        "engine": engine,
        "precision": precision,
        "path": path.relative_to(folder).as_posix(),
        "size": path.stat().st_size,
        "sha256": sha256(path),
    }


def tensor_entry(value: onnx.ValueInfoProto, shape: list[int | str] | None = None) -> dict[str, Any]:
    """Describe an input or output of a graph as the manifest lists it; its shape is the graph's, or ``shape``."""
    kind = value.type.tensor_type
    if shape is None:
        shape = [d.dim_param or d.dim_value for d in kind.shape.dim]
    return {"name": value.name, "dtype": ONNX_TYPES[kind.elem_type], "shape": shape}
