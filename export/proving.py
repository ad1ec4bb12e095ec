"""The stages that prove: diffusers draws, the runtime's loop and the traced parts are held against it, then pictures.

What is wrong shows before any precision is lost: by the replay, and by every traced part on diffusers' own calls.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edgediff.bundle.manifest import Bundle
from edgediff.bundle.reading import read_bundle
from edgediff.compare import psnr
from edgediff.errors import EngineError

from .job import PICTURES, ExportJob
from .manifest import DRAFT_MANIFEST, write_manifest
from .onnx_graph.recipes import PartRecipe
from .precision.precisions import PRECISIONS, prove_fp32, seen_graph
from .precision.sensitive_nodes import Probe, worst_nodes
from .precision.session import OpenGraph, open_session
from .proof.golden import draw_pictures, flatten_cases, picture_arguments, picture_arrays, store_tensors
from .proof.lazy_pipeline import EngineCall, pipeline_of
from .proof.reference import Reference, draw_by_diffusers
from .proof.replay import replay
from .proof.twins import find_twin
from .work_folder import DRAFT

BY_DIFFUSERS = "pictures by diffusers"


def draw_reference(job: ExportJob, manifest: dict[str, Any]) -> dict[str, Any]:
    """Have diffusers draw the golden pictures, replay its answers in our loop, and keep what its models were asked.

    Raises:
        EngineError: our loop asks the models something else.
    """

    def do() -> tuple[Any, list[Path]]:
        twin = find_twin(job.source, job.facts)
        with draft_bundle(job, manifest) as bundle:
            calls = [{**call, **twin.call} for call in picture_arguments(bundle, job.size)]
            arrays = [picture_arrays(bundle, call, "Img2Img" in job.source.pipeline) for call in calls]
            reference = draw_by_diffusers(job.source, job.facts, job.recipes, twin, calls, arrays)
            encoders = {r.name: partial(_traced, job, r) for r in job.recipes}
            asked = replay(bundle, reference, calls, arrays, encoders, job.size)
        notes = [note for note in (twin.note, *job.source.notes()) if note]
        for note in notes:
            job.progress.say(note)
        store_tensors(job.case_file(PICTURES), _golden(reference, arrays))
        about = {
            "pipeline": job.source.pipeline,
            "scheduler": type(twin.scheduler).__name__,
            "asked": float(f"{asked:.1e}"),
        }
        job.progress.say(f"the loop asks what diffusers' {job.source.pipeline} asks, to {asked:.1e} (relative)")
        return {"calls": calls, "reference": about | ({"notes": notes} if notes else {})}, [job.case_file(PICTURES)]

    result: dict[str, Any] = job.step(BY_DIFFUSERS, do)
    return result


def _golden(reference: Reference, arrays: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Choose what is kept: pictures, what their calls take, of each part the first call and the last of picture 1."""
    tensors: dict[str, NDArray[Any]] = {f"picture.{k}": p for k, p in enumerate(reference.pictures)}
    for k, extra in enumerate(arrays):
        tensors |= {f"picture.{k}.{name}": v for name, v in extra.items()}
    for part, cases in {**reference.texts, **reference.traces[0].calls}.items():
        tensors |= flatten_cases(part, [cases[k] for k in sorted({0, len(cases) - 1}) if cases], 1)
    return tensors


def prove_traced(job: ExportJob, recipe: PartRecipe) -> None:
    """Hold a traced part, still in fp32, against what diffusers' own model answered; ``EngineError`` where it differs.

    A part that stays in fp32 is held against it when it is made.
    """

    def do() -> tuple[Any, list[Path]]:
        return {"relative": prove_fp32(recipe.name, job.graph(recipe), job.cases(recipe.name)).relative}, []

    if job.precision[recipe.name] != "fp32":
        job.step(f"{recipe.name}: traced", do)


def compare_pictures(job: ExportJob, manifest: dict[str, Any]) -> dict[str, Any]:
    """Draw the golden pictures by the exported parts, as the engines they are made for will; measure their PSNR.

    Raises:
        EngineError: below the floor; the message names the U-Net's worst nodes.
    """
    from safetensors.numpy import load_file

    job.progress.start("pictures compared")
    references = load_file(job.case_file(PICTURES))
    calls = manifest["golden"]["pictures"]
    arrays = [
        {name.split(".")[2]: v for name, v in references.items() if name.startswith(f"picture.{k}.")}
        for k in range(len(calls))
    ]
    with draft_bundle(job, manifest) as bundle:
        openers = {r.name: partial(_by_onnxruntime, job, bundle, r) for r in job.recipes}
        pictures = draw_pictures(pipeline_of(bundle, openers, job.size)[0], calls, arrays)
    psnrs = [round(psnr(p, references[f"picture.{k}"]), 2) for k, p in enumerate(pictures)]
    job.progress.say(f"pictures: PSNR {', '.join(f'{v:.1f}' for v in psnrs)} dB, at least {job.floor:g}")
    if min(psnrs) < job.floor:
        raise EngineError(
            f"the pictures of this bundle are {min(psnrs):.1f} dB (PSNR) from diffusers', below the floor of "
            f"{job.floor:g} dB{_worst_of_unet(job)}{_sensitive(job)}; --floor {math.floor(min(psnrs))} exports it all "
            "the same, and the bundle says so"
        )
    proof: dict[str, Any] = {"psnr": psnrs, "floor": job.floor}
    if job.floor < job.precision_floor:
        proof["floor_of_precision"] = job.precision_floor
        job.progress.say(
            f"WARNING: the floor is {job.floor:g} dB, as asked; this precision's is {job.precision_floor:g} dB"
        )
    return proof


def _sensitive(job: ExportJob) -> str:
    if set(job.precision.values()) != {"fp32"}:
        return ""
    return (
        "; in fp32 every part is within its ceiling on diffusers' own calls, and the loop asks what diffusers asks, so "
        "this model amplifies rounding itself"
    )


@contextlib.contextmanager
def draft_bundle(job: ExportJob, manifest: dict[str, Any]) -> Iterator[Bundle]:
    """Open the bundle so far, over a copy of its manifest and tokenizers: the workspace itself never looks like one."""
    folder = job.workspace.root / DRAFT
    folder.mkdir(exist_ok=True)
    try:
        for text in manifest["text"]:
            shutil.copy(job.workspace.bundle / text["file"]["path"], folder)
        # Pictures are proved without the words that travel along: diffusers drew them without.
        write_manifest(folder, {k: v for k, v in manifest.items() if k != "embeddings"})
        yield read_bundle(folder, DRAFT_MANIFEST)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _worst_of_unet(job: ExportJob) -> str:
    """Name the nodes of the U-Net that lose most, for a message."""
    precision = job.precision["unet"]
    recipe = next(r for r in job.recipes if r.name == "unet")
    graph, seen = seen_graph(job.graph(recipe), precision, ())
    feed = job.cases("unet")[-1][0]
    worst = worst_nodes(Probe(graph), seen, feed, PRECISIONS[precision].changes)
    named = "; ".join(f"{k} adds {v:.1%}" for k, v in list(worst.items())[:3])
    return f"; the U-Net's worst nodes: {named}" if named else ""


def _by_onnxruntime(job: ExportJob, bundle: Bundle, recipe: PartRecipe) -> EngineCall:
    """Open a part as it shows on a CPU."""
    precision, part = job.precision[recipe.name], bundle.parts[recipe.name]
    if PRECISIONS[precision].seen is not None:
        kept = job.workspace.result(f"{recipe.name}: {precision}")["parity"].get("kept_fp32", {})
        return _called(OpenGraph(seen_graph(job.graph(recipe), precision, kept)[1]))
    names = [t.name for t in part.outputs]
    opened = open_session(job.workspace.bundle / part.files[0].path)
    return lambda **inputs: dict(zip(names, opened.run(names, inputs), strict=True))


def _traced(job: ExportJob, recipe: PartRecipe) -> EngineCall:
    """Open a part as it was traced, in fp32."""
    return _called(OpenGraph(job.graph(recipe)))


def _called(graph: OpenGraph) -> EngineCall:
    return lambda **inputs: graph.run(inputs)
