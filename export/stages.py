"""An export goes by stages. Each finds what it wrote before it was interrupted, and says what it wrote."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgediff.bundle.manifest import Bundle
from edgediff.bundle.reading import read_bundle
from edgediff.compare import psnr
from edgediff.errors import EngineError

from .job import PICTURES, ExportJob
from .manifest import file_entry, graph_entries, tensor_entry, write_manifest
from .onnx_graph.graph import WrittenFile, read_graph, write_graph
from .onnx_graph.recipes import PartRecipe, run_example
from .onnx_graph.trace import trace
from .precision.precisions import PRECISIONS, prove_fp32, seen_graph, write_part
from .precision.sensitive_nodes import worst_nodes
from .precision.session import open_session
from .preview import fit_preview
from .proof.golden import (
    GOLDEN_FILE,
    draw_pictures,
    flatten_cases,
    picture_arguments,
    picture_arrays,
    store_tensors,
)
from .proof.lazy_pipeline import EngineCall, pipeline_of, torch_engine
from .sources.base import encoders_of

PREVIEW_SIDE = 256  # pixels, at most


def trace_part(job: ExportJob, recipe: PartRecipe) -> dict[str, Any]:
    """Trace a part in fp32, and keep torch's outputs on its example."""

    def do() -> tuple[Any, list[Path]]:
        module = recipe.wrap(job.source.load(recipe.component))
        inputs = {name: t.numpy() for name, t in recipe.example(2, 2).items()}
        outputs = dict(zip(recipe.outputs, (t.numpy() for t in run_example(recipe, module, 2, 2)), strict=True))
        path, cases = job.path(recipe.name), job.case_file(recipe.name)
        path.parent.mkdir(exist_ok=True)
        graph = trace(module, recipe.example(1, 1), recipe.outputs, recipe.axes)
        files = write_graph(graph, path)
        store_tensors(cases, flatten_cases(recipe.name, [(inputs, outputs)]))
        example = [t.shape for t in run_example(recipe, module, 1, 1)]
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
        job.source.tokenizer(name).backend_tokenizer.save(str(path))
        out.append(file_entry(job.workspace.bundle, path, "tokenizers", "-"))
    return out


def draw_reference(job: ExportJob, manifest: dict[str, Any]) -> dict[str, Any]:
    """Draw the golden pictures by torch, and keep what its parts were asked and answered on the way."""

    def do() -> tuple[Any, list[Path]]:
        with draft_bundle(job, manifest) as bundle:
            pipe, engines = pipeline_of(
                bundle, {r.name: _opener(torch_engine, r, job.source) for r in job.recipes}, job.size
            )
            calls = picture_arguments(bundle)
            pictures = draw_pictures(pipe, calls)
        tensors: dict[str, NDArray[Any]] = {f"picture.{k}": p for k, p in enumerate(pictures)}
        for k, call in enumerate(calls):
            tensors |= {f"picture.{k}.{name}": v for name, v in picture_arrays(bundle, call).items()}
        for name, engine in engines.items():
            if not engine.calls:
                continue
            # The first call, from pure noise, and the last of the first picture.
            last = len(engine.calls) // len(calls) - 1
            tensors |= flatten_cases(name, [engine.calls[k] for k in sorted({0, max(0, last)})], 1)
        store_tensors(job.case_file(PICTURES), tensors)
        return {"calls": calls}, [job.case_file(PICTURES)]

    result: dict[str, Any] = job.step("pictures by torch", do)
    return result


def fit_previews(job: ExportJob) -> dict[str, Any] | None:
    """Fit the preview matrix; None for a model without autoencoder."""

    def do() -> tuple[Any, list[Path]]:
        side = min(job.facts["defaults"]["width"], PREVIEW_SIDE)
        return fit_preview(job.source.load("vae"), job.facts["latent"]["factor"], side, job.pictures), []

    if not job.source.has("vae"):
        return None
    result: dict[str, Any] = job.step("preview: fitting", do)
    return result


def make_part(job: ExportJob, recipe: PartRecipe, described: dict[str, Any]) -> dict[str, Any]:
    """Make a part in its precision, and hold it against torch."""
    precision, name = job.precision[recipe.name], recipe.name

    def do() -> tuple[Any, list[Path]]:
        path, cases = job.workspace.bundle / f"{name}.onnx", job.cases(name)
        files: list[WrittenFile] = []
        kept: dict[str, str] = {}
        if precision == "fp32":
            proof = prove_fp32(name, path, cases)
        else:
            files, proof, kept = write_part(name, read_graph(job.path(name)), precision, cases, path, job.scratch())
        part = {**described, "files": graph_entries(files, precision) if files else described["files"]}
        parity: dict[str, Any] = {
            "precision": precision,
            "max_abs": float(f"{proof.max_abs:.3e}"),
            "relative": float(f"{proof.relative:.3e}"),
            "ceiling": PRECISIONS[precision].ceiling,
        }
        if kept:
            parity["kept_fp32"] = kept
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


@contextlib.contextmanager
def draft_bundle(job: ExportJob, manifest: dict[str, Any]) -> Iterator[Bundle]:
    """Open the bundle so far, over a copy of its manifest and tokenizers: the workspace itself never looks like one."""
    with tempfile.TemporaryDirectory(dir=job.workspace.root) as folder:
        for text in manifest["text"]:
            shutil.copy(job.workspace.bundle / text["file"]["path"], folder)
        # Pictures are proved without the words that travel along: torch drew them without.
        write_manifest(Path(folder), {k: v for k, v in manifest.items() if k != "embeddings"})
        yield read_bundle(folder)


def compare_pictures(job: ExportJob, manifest: dict[str, Any]) -> dict[str, Any]:
    """Draw the golden pictures by the exported parts, as the engines they are made for will; measure their PSNR.

    Raises:
        EngineError: below the floor; the message names the U-Net's worst nodes.
    """
    from safetensors.numpy import load_file

    job.progress.start("pictures compared")
    references = load_file(job.case_file(PICTURES))
    with draft_bundle(job, manifest) as bundle:
        openers = {r.name: _opener(_by_onnxruntime, job, bundle, r.name) for r in job.recipes}
        pictures = draw_pictures(pipeline_of(bundle, openers, job.size)[0], manifest["golden"]["pictures"])
    psnrs = [round(psnr(p, references[f"picture.{k}"]), 2) for k, p in enumerate(pictures)]
    job.progress.say(f"pictures: PSNR {', '.join(f'{v:.1f}' for v in psnrs)} dB, at least {job.floor:g}")
    if min(psnrs) < job.floor:
        raise EngineError(
            f"the pictures of this bundle are {min(psnrs):.1f} dB (PSNR) from torch's, below the floor of "
            f"{job.floor:g} dB{_worst_of_unet(job)}"
        )
    return {"psnr": psnrs, "floor": job.floor}


def _worst_of_unet(job: ExportJob) -> str:
    """Name the nodes of the U-Net that lose most, for a message."""
    precision = job.precision["unet"]
    graph, seen = seen_graph(read_graph(job.path("unet")), precision, ())
    feed = job.cases("unet")[-1][0]
    worst = worst_nodes(graph, seen, feed, job.scratch(), PRECISIONS[precision].changes)
    named = "; ".join(f"{k} adds {v:.1%}" for k, v in list(worst.items())[:3])
    return f"; the U-Net's worst nodes: {named}" if named else ""


def _by_onnxruntime(job: ExportJob, bundle: Bundle, name: str) -> EngineCall:
    """Open a part as it shows on a CPU."""
    precision, part = job.precision[name], bundle.parts[name]
    names = [t.name for t in part.outputs]
    path = job.workspace.bundle / part.files[0].path
    if PRECISIONS[precision].seen is not None:
        kept = job.workspace.result(f"{name}: {precision}")["parity"].get("kept_fp32", {})
        path = job.scratch() / f"{name}.onnx"
        write_graph(seen_graph(read_graph(job.path(name)), precision, kept)[1], path)
    opened = open_session(path)
    return lambda **inputs: dict(zip(names, opened.run(names, inputs), strict=True))


def _opener(open_engine: Callable[..., EngineCall], *arguments: Any) -> Callable[[], EngineCall]:
    return lambda: open_engine(*arguments)
