"""diffusers folder -> bundle."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch

import edgediff
from edgediff import bundle as bundles
from edgediff.engines import INSTALL, WEIGHTS
from edgediff.errors import ArgumentError, BundleError, BundleNotFoundError, EngineError, OutputError, choices
from edgediff.names import from_config

from .parity import compare
from .parts import Traced, parts_of
from .preview import fit_preview
from .trace import OPSET, trace
from .weights import store_fp16

PRECISIONS = ("fp32", "fp16-weights")
DATA_LIMIT = 1 << 30  # bytes; above it weights go to one external file (protobuf ends at 2 GB)
# Scheduler settings that change the picture, with the values that leave it as the runtime's samplers make it.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "trained_betas": (None,),
    "clip_sample": (False,),
    "thresholding": (False,),
    "use_beta_sigmas": (False,),
    "use_flow_sigmas": (False,),
    "use_lu_lambdas": (False,),
    "euler_at_final": (False,),
    "final_sigmas_type": ("zero",),
    "timestep_type": ("discrete",),
    "interpolation_type": ("linear",),
    "sigma_min": (None,),
    "sigma_max": (None,),
}
_ONNX_TYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64", onnx.TensorProto.FLOAT16: "float16"}


def export(
    source: str | Path,
    out: str | Path,
    *,
    precision: str = "fp16-weights",
    name: str | None = None,
    defaults: dict[str, Any] | None = None,
    licence: str = "",
    provenance: dict[str, Any] | None = None,
    pictures: torch.Tensor | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Path:
    """Export a diffusers folder (Stable Diffusion 1.x or 2.x) to a bundle; whole or not at all.

    Args:
        source: a folder with ``model_index.json``, as ``save_pretrained`` writes it.
        out: the bundle's folder; must not exist, or be empty.
        precision: fp32, or fp16-weights (stored in fp16, computed in fp32).
        name, licence, provenance: what the manifest says; ``defaults`` overrides its defaults (size, steps, ...).
        pictures: float32 (N, 3, H, W) in [-1, 1] for the preview fit.
        report: called with a line of progress.

    Raises:
        ArgumentError, BundleNotFoundError, BundleError: a source that cannot be exported.
        EngineError: a part differs from torch by more than its precision's ceiling.
        OutputError: ``out`` cannot be written.
    """
    source, out = Path(source), Path(out)
    if precision not in PRECISIONS:
        raise ArgumentError(f"no precision {precision!r}; choose from {choices(PRECISIONS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"cannot write {out}: it exists and is not an empty folder")
    if importlib.util.find_spec("onnxruntime") is None:
        raise EngineError(f"the parity check needs ONNX Runtime: {INSTALL}")
    pipeline = _load(source)
    facts = _facts(pipeline, defaults or {})  # what cannot be exported shows here, before minutes of tracing
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error
    try:
        manifest = facts | _write(pipeline, work, precision, facts, pictures, report)
        manifest |= {"name": name or source.name, "licence": licence, "provenance": provenance or {}}
        manifest["provenance"] |= _versions(pipeline)
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        (work / bundles.MANIFEST).write_text(text, encoding="utf-8")
        bundles.read(work)  # what is published must open
        work.chmod(0o755)
        if out.exists():
            out.rmdir()
        work.rename(out)
    except BaseException as error:
        shutil.rmtree(work, ignore_errors=True)
        if isinstance(error, OSError) and not isinstance(error, edgediff.EdgediffError):
            raise OutputError(f"cannot write {out}: {error.strerror or error}") from error
        raise
    return out


def _load(source: Path) -> Any:
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizerFast

    index = source / "model_index.json"
    if not index.is_file():
        raise BundleNotFoundError(f"no diffusers model at {source}: it has no model_index.json")
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{index} is not JSON: {error}") from error
    if listed.get("_class_name") != "StableDiffusionPipeline":
        raise BundleError(f"{source} is a {listed.get('_class_name')!r}; this version exports StableDiffusionPipeline")
    for part in ("text_encoder", "tokenizer", "unet", "vae", "scheduler"):
        if not (source / part).is_dir():
            raise BundleNotFoundError(f"{source}: part {part} is missing; save the whole pipeline with save_pretrained")
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            str(source), local_files_only=True, safety_checker=None, torch_dtype=torch.float32
        )
        # The fast tokenizer whatever the index names (SD 1.5 names the slow one): only it can write tokenizer.json.
        pipeline.tokenizer = CLIPTokenizerFast.from_pretrained(str(source / "tokenizer"), local_files_only=True)
    except Exception as error:  # diffusers raises many kinds; the message is what matters
        raise BundleError(f"{source} cannot be loaded by diffusers: {error}") from error
    for part in ("text_encoder", "unet", "vae"):
        for key, tensor in getattr(pipeline, part).state_dict().items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise BundleError(f"{source}: {part} has weights that are not finite, first in {key}")
    return pipeline


def _facts(pipeline: Any, defaults: dict[str, Any]) -> dict[str, Any]:
    """The manifest without its files; raises ``BundleError`` for what the runtime cannot run."""
    vae, unet, tokenizer = pipeline.vae.config, pipeline.unet.config, pipeline.tokenizer
    factor = 2 ** (len(vae.block_out_channels) - 1)
    if unet.in_channels != vae.latent_channels:
        raise BundleError(f"the U-Net takes {unet.in_channels} channels, the autoencoder gives {vae.latent_channels}")
    side = unet.sample_size * factor
    sampler, _ = from_config(_config(pipeline.scheduler)) or ("ddim", None)
    return {
        "format": bundles.FORMAT,
        "name": "",
        "kind": bundles.KINDS[0],
        "schedule": _schedule(_config(pipeline.scheduler)),
        "latent": {
            "channels": vae.latent_channels,
            "factor": factor,
            "scale": vae.scaling_factor,
            "shift": vae.shift_factor or 0.0,
            "size_multiple": factor * 2 ** (len(unet.block_out_channels) - 1),
        },
        "defaults": {
            "width": side,
            "height": side,
            "num_inference_steps": 20,
            "guidance_scale": 7.5,
            "sampler": sampler,
            **defaults,
        },
        "text": [
            {
                "max_length": min(tokenizer.model_max_length, pipeline.text_encoder.config.max_position_embeddings),
                "pad_id": tokenizer.pad_token_id,
            }
        ],
    }


def _write(
    pipeline: Any,
    work: Path,
    precision: str,
    facts: dict[str, Any],
    pictures: torch.Tensor | None,
    report: Callable[[str], None],
) -> dict[str, Any]:
    latent, text, size = facts["latent"], facts["text"][0], facts["defaults"]["width"]
    if from_config(config := _config(pipeline.scheduler)) is None:
        report(
            f"scheduler: {config['_class_name']} with its settings has no twin here; the bundle's default sampler is "
            f"{facts['defaults']['sampler']}"
        )
    parts, parity = {}, {}
    for part in parts_of(pipeline, latent["size_multiple"], latent["factor"], text["max_length"]):
        report(f"{part.name}: exporting")
        parts[part.name], parity[part.name] = _part(part, work, precision)
        report(f"{part.name}: {json.dumps(parity[part.name])}")
    pipeline.tokenizer.backend_tokenizer.save(str(work / "tokenizer.json"))
    report("preview: fitting")
    preview = fit_preview(pipeline.vae, latent["factor"], min(size, 256), pictures)
    parity["preview_r2"] = preview.pop("r2")
    tokenizer = _file(work, work / "tokenizer.json", "tokenizers", "-")
    return {"text": [{"file": tokenizer, **text}], "parts": parts, "preview": preview, "parity": parity}


def _part(part: Traced, work: Path, precision: str) -> tuple[dict[str, Any], dict[str, Any]]:
    path = work / f"{part.name}.onnx"
    model = trace(part.module, part.example(1, 1), part.outputs, part.axes, work)
    if precision == "fp16-weights":
        store_fp16(model)
    big = sum(t.ByteSize() for t in model.graph.initializer) > DATA_LIMIT
    data = path.name + ".data"
    onnx.save_model(model, str(path), save_as_external_data=big, location=data if big else None)
    files = [_file(work, path, "onnx", precision)]
    if big:
        files.append(_file(work, work / data, WEIGHTS, precision))
    described = {
        "files": files,
        "inputs": [_tensor(t, [d.dim_param or d.dim_value for d in _kind(t).shape.dim]) for t in model.graph.input],
        # Tracing invents names for output sizes that it cannot infer: take ours, and the example's numbers.
        "outputs": [
            _tensor(t, [part.axes[t.name].get(k, size) for k, size in enumerate(example.shape)])
            for t, example in zip(model.graph.output, part.run(1, 1), strict=True)
        ],
    }
    return described, compare(part, path, precision)


def _kind(value: Any) -> Any:
    return value.type.tensor_type


def _tensor(value: Any, shape: list[int | str]) -> dict[str, Any]:
    return {"name": value.name, "dtype": _ONNX_TYPES[_kind(value).elem_type], "shape": shape}


def _file(work: Path, path: Path, engine: str, precision: str) -> dict[str, Any]:
    return {
        "engine": engine,
        "precision": precision,
        "path": path.relative_to(work).as_posix(),
        "size": path.stat().st_size,
        "sha256": bundles.sha256(path),
    }


def _config(scheduler: Any) -> dict[str, Any]:
    return {**scheduler.config, "_class_name": type(scheduler).__name__}


def _schedule(config: dict[str, Any]) -> dict[str, Any]:
    """The facts that the runtime plans from; settings that change the result and that it lacks are refused."""
    for key, neutral in NEUTRAL.items():
        if (value := config.get(key)) is not None and value not in neutral:
            raise BundleError(f"scheduler: {key} is {value!r}, which this version cannot run; it takes {neutral[0]!r}")
    names = {f.name for f in dataclasses.fields(edgediff.Schedule)}
    required = {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule"}
    if missing := sorted(required - {k for k in required if config.get(k) is not None}):
        raise BundleError(
            f"scheduler: {config.get('_class_name')} has no {missing[0]}; is it a discrete-time schedule?"
        )
    schedule = {k: v for k, v in config.items() if k in names and v is not None}
    # The sampler's spacing of noise levels (Karras, ...) comes before that of timesteps.
    if (twin := from_config(config)) and twin[1]:
        schedule["timestep_spacing"] = twin[1]
    try:
        return dataclasses.asdict(edgediff.Schedule(**schedule))
    except ArgumentError as error:
        raise BundleError(f"scheduler: {error}") from error


def _versions(pipeline: Any) -> dict[str, Any]:
    import diffusers
    import transformers

    return {
        "exporter": f"edgediff {edgediff.__version__}",
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "onnx": onnx.__version__,
        "opset": OPSET,
        "source_class": type(pipeline).__name__,
    }
