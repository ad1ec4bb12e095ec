"""A checkpoint becomes a bundle: every part in fp32 first, then in the precision asked for, then proved by pictures."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import torch

import edgediff
from edgediff.bundle.reading import read_bundle
from edgediff.bundle.scheduler_config import remarks
from edgediff.checks import is_number
from edgediff.engines.session import INSTALL
from edgediff.errors import ArgumentError, BundleError, EngineError, choices

from .job import ExportJob
from .latent_facts import unused_shift
from .lora.file import read_lora
from .manifest import DRAFT_MANIFEST, file_entry, model_facts, scheduler_of, write_manifest
from .onnx_graph.recipes import PartRecipe, recipes_of
from .onnx_graph.trace import OPSET
from .precision.precisions import PRECISIONS
from .progress import Progress
from .proving import BY_DIFFUSERS, compare_pictures, draw_reference, prove_traced
from .sources.base import Source
from .sources.embeddings import CarriedEmbedding, read_embeddings, store_embeddings
from .sources.modified import ModifiedSource
from .sources.open import open_source
from .sources.single_file import SingleFile
from .stages import fit_previews, make_part, store_golden, trace_part, write_tokenizers
from .versions import check_versions
from .workspace import Workspace

DEFAULT = "fp16-weights"
# What a bundle takes on disk, of the model's size in fp32.
SHARES = {"fp32": 1.0, "fp16": 0.55, "fp16-weights": 0.55, "int8": 0.4, "int8-dynamic": 0.8}
FLOORS = (10, 99)  # dB of PSNR that may be asked for; below, nothing is recognised


def export(
    source: str | Path,
    out: str | Path,
    *,
    precision: str = DEFAULT,
    part_precision: Mapping[str, str] | None = None,
    loras: Sequence[tuple[str | Path, float]] = (),
    embeddings: Sequence[tuple[str | None, str | Path]] = (),
    config: str | Path | None = None,
    vae: str | Path | None = None,
    vae_shift: bool = False,
    preview_decoder: str | Path | None = None,
    prediction_type: str | None = None,
    floor: float | None = None,
    name: str | None = None,
    defaults: dict[str, Any] | None = None,
    licence: str = "",
    provenance: dict[str, Any] | None = None,
    pictures: torch.Tensor | None = None,
    report: Callable[[str], None] = lambda _: None,
    bar: bool = False,
    layout: Callable[[Path, Path], None] | None = None,
) -> Path:
    """Export a checkpoint of the Stable Diffusion family to a bundle; whole or not at all.

    An interrupted export goes on where it stopped when it is called again with the same arguments.

    Args:
        source: a folder with ``model_index.json``, as ``save_pretrained`` writes it, or one .safetensors file in the
            original layout.
        out: the bundle's folder; must not exist, or be empty.
        precision: fp32; fp16 (for GPUs; what fp16 cannot hold stays in fp32); fp16-weights (stored in fp16, computed in
            fp32); int8 (weights stored in int8, computed in fp32); int8-dynamic (linears multiplied in int8).
        part_precision: other precisions for some parts, by name.
        loras: files and weights, merged.
        embeddings: words (None: the file's own) and files of textual inversions, carried in the bundle.
        config: a diffusers folder whose configs stand for those that a single file lacks.
        vae: another autoencoder; ``preview_decoder`` a folder with an AutoencoderTiny for previews.
        vae_shift: decode with the autoencoder's ``shift_factor`` (z / scaling_factor + shift_factor), as pipelines of
            newer families do and diffusers' pipelines of these do not.
        prediction_type: of a single file that does not say, epsilon or v_prediction.
        floor: least PSNR of the pictures in dB, 10 .. 99, in place of the precision's; the bundle says so.
        name, licence, provenance: what the manifest says; ``defaults`` overrides its defaults (size, steps, ...).
        pictures: float32 (N, 3, H, W) in [-1, 1] for the preview fit.
        report: called with lines of text: steps that start (unless a bar shows them), and what was found.
        bar: draw a progress bar on stderr where that is a terminal.
        layout: called with the finished bundle and a folder to be made, which then stands for the bundle.

    Raises:
        ArgumentError, BundleNotFoundError, BundleError: a source that cannot be exported.
        EngineError: a part, or a picture, is further from torch than its precision may be; a library of a version that
            is not known.
        OutputError: ``out`` cannot be written.
    """
    check_versions()
    source, out = Path(source), Path(out)
    for asked in (precision, *(part_precision or {}).values()):
        if asked not in PRECISIONS:
            raise ArgumentError(f"no precision {asked!r}; choose from {choices(PRECISIONS)}")
    if floor is not None and not is_number(floor, *FLOORS):
        raise ArgumentError(f"floor is {floor!r}; it must be a number of dB, {FLOORS[0]} .. {FLOORS[1]}")
    if importlib.util.find_spec("onnxruntime") is None:
        raise EngineError(f"the parity check needs ONNX Runtime: {INSTALL}")
    exchanged = () if vae is None else ("vae",)
    opened = open_source(source, None if config is None else Path(config), prediction_type, exchanged)
    if isinstance(opened, SingleFile) and (assumed := opened.guesses()):
        report(assumed)
    others = {name: Path(p) for name, p in (("vae", vae), ("preview_decoder", preview_decoder)) if p is not None}
    if others or loras:
        read = [read_lora(path, weight) for path, weight in loras]
        for doubt in filter(None, (lora.doubt for lora in read)):
            report(doubt)
        opened = ModifiedSource(opened, others, read)
    # What cannot be exported shows here, before minutes of tracing.
    facts = model_facts(opened, defaults or {}, vae_shift)
    opened.check()
    if unused := unused_shift(opened, facts):
        report(unused)
    recipes = recipes_of(opened, facts)
    names = [r.name for r in recipes]
    if unknown := [part for part in part_precision or {} if part not in names]:
        raise ArgumentError(f"no part {unknown[0]!r} in {source}; choose from {choices(names)}")
    by_part = {part: (part_precision or {}).get(part, precision) for part in names}
    sizes = {r.name: _bytes(opened, r) for r in recipes}
    carried = read_embeddings([(word, Path(path)) for word, path in embeddings], opened)
    shown = None if pictures is None else hashlib.sha256(pictures.numpy().tobytes()).hexdigest()
    key = [opened.fingerprint(), shown, by_part, facts, edgediff.__version__, torch.__version__, OPSET]
    workspace = Workspace(out, key)
    share = 1.1 if layout is None else 2.2
    workspace.need(int(share * sum(size * SHARES[by_part[part]] for part, size in sizes.items())))
    for remark in remarks(scheduler_of(opened)):
        report(f"{remark}; the bundle's default sampler is {facts['defaults']['sampler']}")
    about = {
        "name": name or (source.resolve().name if source.is_dir() else source.stem),
        "licence": licence,
        "provenance": (provenance or {}) | _versions(opened),
    }
    with Progress(_costs(sizes, by_part), report, bar) as progress, workspace.open():
        if workspace.doubt:
            report(workspace.doubt)
        job = ExportJob(opened, facts, recipes, by_part, workspace, progress, pictures, sum(sizes.values()), floor)
        with _unchanged(opened):
            _build(job, facts | about, carried)
            if layout is not None:
                layout(workspace.bundle, workspace.layout)
        return workspace.publish(workspace.bundle if layout is None else workspace.layout)


@contextlib.contextmanager
def _unchanged(source: Source) -> Iterator[None]:
    """Raise ``BundleError`` where files of the source change meanwhile, whatever came of it.

    Weights are read when they are needed, so a file that changes would be half in the bundle.
    """

    def seen() -> str | None:
        try:
            return source.fingerprint()
        except OSError:
            return None

    before = seen()
    try:
        yield
    except Exception as error:
        if seen() != before:
            raise _changed(source) from error
        raise
    if seen() != before:
        raise _changed(source)


def _changed(source: Source) -> BundleError:
    return BundleError(
        f"{source.path}: its files, or those merged into it, changed during the export, so nothing was made of them; "
        "export it when they are whole"
    )


def _build(job: ExportJob, manifest: dict[str, Any], carried: Sequence[CarriedEmbedding]) -> None:
    """Build everything in the workspace's bundle, stage by stage."""
    traced = {recipe.name: trace_part(job, recipe) for recipe in job.recipes}
    texts = write_tokenizers(job)
    manifest["parts"] = {name: result["part"] for name, result in traced.items()}
    manifest["text"] = [{"file": file, **text} for file, text in zip(texts, job.facts["text"], strict=True)]
    proof = draw_reference(job, manifest)
    for recipe in job.recipes:
        prove_traced(job, recipe)
    preview = fit_previews(job)
    made = {recipe.name: make_part(job, recipe, traced[recipe.name]["part"]) for recipe in job.recipes}
    manifest["parts"] = {name: result["part"] for name, result in made.items()}
    manifest["parity"] = {name: result["parity"] for name, result in made.items()}
    if preview is not None:
        manifest["parity"]["preview_r2"] = preview.pop("r2")
        manifest["preview"] = preview
    if carried:
        bundle = job.workspace.bundle
        manifest["embeddings"] = [
            {"word": word, "file": file_entry(bundle, path, "embedding", "-")}
            for word, path in store_embeddings(carried, bundle)
        ]
    manifest["golden"] = {**store_golden(job), "pictures": proof["calls"], "floor": job.floor}
    manifest["parity"]["pictures"] = compare_pictures(job, manifest) | {"reference": proof["reference"]}
    write_manifest(job.workspace.bundle, manifest)
    read_bundle(job.workspace.bundle, DRAFT_MANIFEST)  # what is published must open


def _bytes(source: Source, recipe: PartRecipe) -> int:
    """Count the bytes of a part's weights in fp32."""
    return 4 * sum(int(p.numel()) for p in source.hollow(recipe.component).parameters())


def _costs(sizes: Mapping[str, int], precisions: Mapping[str, str]) -> dict[str, float]:
    """Estimate the seconds of each step; what counts is how they compare."""
    gigabytes = {name: size / 1e9 for name, size in sizes.items()}
    costs = {f"{name}: tracing": 0.5 + 8 * size for name, size in gigabytes.items()}
    costs[BY_DIFFUSERS] = 2 + 20 * sum(gigabytes.values())
    costs |= {f"{name}: traced": 0.5 + 3 * size for name, size in gigabytes.items() if precisions[name] != "fp32"}
    if "vae_encoder" in gigabytes:
        costs["preview: fitting"] = 2.0
    factor = {"fp32": 3.0, "fp16": 20.0, "fp16-weights": 6.0, "int8": 10.0, "int8-dynamic": 10.0}
    costs |= {f"{name}: {precisions[name]}": 0.5 + factor[precisions[name]] * size for name, size in gigabytes.items()}
    costs["pictures compared"] = 2 + 20 * sum(gigabytes.values())
    return costs


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
