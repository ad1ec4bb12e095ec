"""diffusers folder -> bundle."""

from __future__ import annotations

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
from edgediff.errors import ArgumentError, EngineError, OutputError, choices
from edgediff.names import from_config

from .facts import facts_of
from .parity import compare
from .parts import Recipe, recipes_of, run
from .preview import fit_preview
from .source import Source, open_source
from .trace import OPSET, trace
from .weights import store_fp16

PRECISIONS = ("fp32", "fp16-weights")
DATA_LIMIT = 1 << 30  # bytes; above it weights go to one external file (protobuf ends at 2 GB)
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
    opened = open_source(source)
    facts = facts_of(opened, defaults or {})  # what cannot be exported shows here, before minutes of tracing
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror or error}") from error
    try:
        manifest = facts | _write(opened, work, precision, facts, pictures, report)
        manifest |= {"name": name or source.name, "licence": licence, "provenance": provenance or {}}
        manifest["provenance"] |= _versions(opened)
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


def _write(
    source: Source,
    work: Path,
    precision: str,
    facts: dict[str, Any],
    pictures: torch.Tensor | None,
    report: Callable[[str], None],
) -> dict[str, Any]:
    latent, text, size = facts["latent"], facts["text"][0], facts["defaults"]["width"]
    if from_config(config := source.scheduler()) is None:
        report(
            f"scheduler: {config['_class_name']} with its settings has no twin here; the bundle's default sampler is "
            f"{facts['defaults']['sampler']}"
        )
    parts, parity = {}, {}
    models: dict[str, Any] = {}
    for part in recipes_of(source, facts):
        report(f"{part.name}: exporting")
        if part.component not in models:
            models = {part.component: source.load(part.component)}  # one at a time
        parts[part.name], parity[part.name] = _part(part, part.wrap(models[part.component]), work, precision)
        report(f"{part.name}: {json.dumps(parity[part.name])}")
    source.tokenizer("tokenizer").backend_tokenizer.save(str(work / "tokenizer.json"))
    report("preview: fitting")
    preview = fit_preview(models["vae"], latent["factor"], min(size, 256), pictures)
    parity["preview_r2"] = preview.pop("r2")
    tokenizer = _file(work, work / "tokenizer.json", "tokenizers", "-")
    return {"text": [{"file": tokenizer, **text}], "parts": parts, "preview": preview, "parity": parity}


def _part(part: Recipe, module: torch.nn.Module, work: Path, precision: str) -> tuple[dict[str, Any], dict[str, Any]]:
    path = work / f"{part.name}.onnx"
    model = trace(module, part.example(1, 1), part.outputs, part.axes, work)
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
            for t, example in zip(model.graph.output, run(part, module, 1, 1), strict=True)
        ],
    }
    return described, compare(part, module, path, precision)


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


def _versions(source: Source) -> dict[str, Any]:
    import diffusers
    import transformers

    return {
        "exporter": f"edgediff {edgediff.__version__}",
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "onnx": onnx.__version__,
        "opset": OPSET,
        "source_class": source.pipeline,
    }
