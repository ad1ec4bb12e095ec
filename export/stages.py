"""An export goes by stages. Each finds what it wrote before it was interrupted, and says what it wrote."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from .job import PICTURES, ExportJob
from .manifest import file_entry, graph_entries, tensor_entry
from .onnx_graph.attention import use_fused
from .onnx_graph.graph import write_graph
from .onnx_graph.recipes import PartRecipe, run_example
from .onnx_graph.trace import trace
from .precision.precisions import parity_entry, write_part
from .preview import fit_preview
from .proof.golden import GOLDEN_FILE, flatten_cases, store_tensors
from .sources.base import encoders_of
from .sources.clip_tokenizer import write_tokenizer

PREVIEW_SIDE = 256  # pixels, at most


def trace_part(job: ExportJob, recipe: PartRecipe) -> dict[str, Any]:
    """Trace a part in fp32, and keep torch's outputs on its example."""

    def do() -> tuple[Any, list[Path]]:
        module = recipe.wrap(job.source.reference(recipe.component))
        inputs = {name: t.numpy() for name, t in recipe.example(2, 2).items()}
        outputs = dict(zip(recipe.outputs, (t.numpy() for t in run_example(recipe, module, 2, 2)), strict=True))
        example = [t.shape for t in run_example(recipe, module, 1, 1)]
        del module
        path, cases = job.path(recipe.name), job.case_file(recipe.name)
        path.parent.mkdir(exist_ok=True)
        hollow = recipe.wrap(copy.deepcopy(job.source.hollow(recipe.component)))
        graph = trace(use_fused(hollow), recipe.example(1, 1), recipe.outputs, recipe.axes, job.bind(recipe))
        files = write_graph(graph.with_constants_alone(), path)
        store_tensors(cases, flatten_cases(recipe.name, [(inputs, outputs)]))
        described = {
            "files": graph_entries(files, "fp32"),
            "inputs": [tensor_entry(t) for t in graph.model.graph.input],
            # Tracing invents names for output sizes that it cannot infer: take ours, and the example's numbers.
            "outputs": [
                tensor_entry(t, [recipe.axes[t.name].get(k, size) for k, size in enumerate(shape)])
                for t, shape in zip(graph.model.graph.output, example, strict=True)
            ],
        }
        return {"part": described}, [*(f.path for f in files), cases]

    result: dict[str, Any] = job.step(f"{recipe.name}: tracing", do)
    return result


def write_tokenizers(job: ExportJob) -> list[dict[str, Any]]:
    """Write ``tokenizer.json``, one a text encoder."""
    out = []
    for _, name in encoders_of(job.source):
        path = job.workspace.bundle / f"{name}.json"
        write_tokenizer(job.source.tokenizer(name), path)
        out.append(file_entry(job.workspace.bundle, path, "tokenizers", "-"))
    return out


def fit_previews(job: ExportJob) -> dict[str, Any] | None:
    """Fit the preview matrix; None for a model without autoencoder."""

    def do() -> tuple[Any, list[Path]]:
        side = min(job.facts["defaults"]["width"], PREVIEW_SIDE)
        return fit_preview(job.source.reference("vae"), job.facts["latent"]["factor"], side, job.pictures), []

    if not job.source.has("vae"):
        return None
    result: dict[str, Any] = job.step("preview: fitting", do)
    return result


def make_part(job: ExportJob, recipe: PartRecipe, described: dict[str, Any]) -> dict[str, Any]:
    """Make a part in its precision, and hold it against torch."""
    precision, name = job.precision[recipe.name], recipe.name

    def do() -> tuple[Any, list[Path]]:
        path, cases = job.workspace.bundle / f"{name}.onnx", job.cases(name)
        files, proof, kept = write_part(name, job.graph(recipe), precision, cases, path)
        part = {**described, "files": graph_entries(files, precision)}
        parity = parity_entry(precision, proof, kept)
        job.progress.say(
            f"{name}: {precision} is {proof.relative:.1e} from torch (relative)"
            + (f"; {len(kept)} nodes stay in fp32" if kept else "")
        )
        return {"part": part, "parity": parity}, [f.path for f in files]

    result: dict[str, Any] = job.step(f"{name}: {precision}", do)
    return result


def store_golden(job: ExportJob) -> dict[str, Any]:
    """Store the golden tensors in the bundle."""
    from safetensors.numpy import load_file

    names = [*(r.name for r in job.recipes), PICTURES]
    path = job.workspace.bundle / GOLDEN_FILE
    store_tensors(path, {k: v for name in names for k, v in load_file(job.case_file(name)).items()})
    return {"file": file_entry(job.workspace.bundle, path, "golden", "-")}
