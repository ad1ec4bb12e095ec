"""A foreign folder becomes a bundle: its graphs rewired, its own answers golden, every precision proved by them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

import edgediff
from edgediff.bundle.manifest import Bundle
from edgediff.bundle.reading import FORMAT, read_bundle
from edgediff.engines.base import EngineOptions
from edgediff.engines.choose import check_foreign
from edgediff.engines.session import import_onnxruntime
from edgediff.errors import ArgumentError, BundleError, choices

from ..manifest import DRAFT_MANIFEST, file_entry, write_manifest
from ..precision.precisions import PRECISIONS
from ..progress import Progress
from ..proof.golden import GOLDEN_FILE, flatten_cases, store_tensors
from ..workspace import Workspace
from .reference import draw_reference
from .steps import Adoption, compare_pictures, fit_previews, make_part, write_tokenizers

DEFAULT = "fp32"
MIN_OPSET = 13  # of DequantizeLinear with an axis


def adopt(
    source: str | Path,
    out: str | Path,
    *,
    precision: str = DEFAULT,
    part_precision: Mapping[str, str] | None = None,
    name: str | None = None,
    licence: str = "",
    report: Callable[[str], None] = lambda _: None,
    bar: bool = False,
) -> Path:
    """Make a bundle of a folder of ONNX graphs, whole or not at all. Torch is not needed.

    Args:
        source: the folder, as optimum or Olive write it.
        out: the bundle's folder; must not exist, or be empty.
        precision: one of ``PRECISIONS``; fp32 leaves the weights as they are.
        part_precision: other precisions for some parts, by name.
        name, licence: what the manifest says.
        report: called with lines of text; ``bar`` draws a progress bar on stderr where that is a terminal.

    Raises:
        ArgumentError: an unknown precision or part.
        BundleError: a folder that cannot be adopted; the message names the fact.
        EngineError: a part, or a picture, is further from the source's than its precision may be.
        OutputError: ``out`` cannot be written.
    """
    bundle = read_bundle(Path(source))
    if bundle.foreign is None:
        raise BundleError(f"{source} is a bundle already; adopt takes folders of ONNX graphs that others wrote")
    chosen = _precisions(bundle, precision, part_precision or {})
    check_foreign(bundle, EngineOptions(), None)
    size = sum(file.size for part in bundle.parts.values() for file in part.files)
    steps = ["pictures by the source", *(f"{part}: {p}" for part, p in chosen.items()), "pictures compared"]
    workspace = Workspace(Path(out), [str(source), bundle.id, chosen, edgediff.__version__])
    workspace.need(int(2.2 * size))
    with Progress(dict.fromkeys(steps, 1.0), report, bar) as progress, workspace.open():
        if workspace.doubt:
            report(workspace.doubt)
        _build(Adoption(bundle, chosen, workspace, progress, size), _facts(bundle, name or bundle.name, licence))
        return workspace.publish()


def _precisions(bundle: Bundle, precision: str, by_part: Mapping[str, str]) -> dict[str, str]:
    """Choose the precision of each part, and refuse parts that cannot be adopted before any work.

    Raises:
        ArgumentError: one that there is not.
        BundleError: one that cannot be made of this source; a graph that takes one batch size alone.
    """
    for asked in (precision, *by_part.values()):
        if asked not in PRECISIONS:
            raise ArgumentError(f"no precision {asked!r}; choose from {choices(PRECISIONS)}")
    if unknown := [part for part in by_part if part not in bundle.parts]:
        raise ArgumentError(f"no part {unknown[0]!r} in {bundle.root}; choose from {choices(bundle.parts)}")
    chosen = {part: by_part.get(part, precision) for part in bundle.parts}
    assert bundle.foreign is not None
    for part, asked in chosen.items():
        adaptation = bundle.foreign.parts[part]
        if adaptation.batch is not None:
            raise BundleError(
                f"{part}: its graph takes {adaptation.batch} at once and no other number, and a bundle's parts take "
                "any; the folder runs as it is, without being adopted"
            )
        header = adaptation.header
        if (opset := max(header.opsets.get("", 0), header.opsets.get("ai.onnx", 0))) < MIN_OPSET:
            raise BundleError(f"{part}: its graph is of opset {opset}; adopting needs {MIN_OPSET} or later")
        if asked == "fp32" and "float16" in header.weights:
            raise BundleError(
                f"{part}: its weights are in fp16, so that fp32 would double the file and bring nothing; take "
                "--precision fp16-weights, which keeps every weight, or fp16, int8, int8-dynamic"
            )
    return chosen


def _facts(source: Bundle, name: str, licence: str) -> dict[str, Any]:
    """The manifest without its files."""
    assert source.foreign is not None
    return {
        "format": FORMAT,
        "name": name,
        "kind": source.kind,
        "schedule": {key: value for key, value in asdict(source.schedule).items() if value is not None},
        "latent": asdict(source.latent),
        "defaults": asdict(source.defaults),
        "zero_negative": source.zero_negative,
        "licence": licence,
        "provenance": {
            **source.provenance,
            "exporter": f"edgediff {edgediff.__version__}",
            "onnx": onnx.__version__,
            "reference": "its source",
            "reference_by": f"ONNX Runtime {import_onnxruntime().__version__}",
            "assumed": list(source.foreign.notes),
        },
    }


def _build(job: Adoption, manifest: dict[str, Any]) -> None:
    """Build everything in the workspace's bundle."""
    folder = job.workspace.bundle
    job.progress.start("pictures by the source")
    cases, pictures, calls = draw_reference(job.source, job.size)
    made = {part: make_part(job, part, cases[part]) for part in job.source.parts}
    manifest["parts"] = {part: entry for part, (entry, _) in made.items()}
    manifest["parity"] = {part: parity for part, (_, parity) in made.items()}
    if preview := fit_previews(job):
        manifest["parity"]["preview_r2"] = preview.pop("r2")
        manifest["preview"] = preview
    flat = {name: values for part, some in cases.items() for name, values in flatten_cases(part, some).items()}
    store_tensors(folder / GOLDEN_FILE, {**pictures, **flat})
    file = file_entry(folder, folder / GOLDEN_FILE, "golden", "-")
    manifest["golden"] = {"file": file, "pictures": calls, "floor": job.floor}
    manifest["text"] = write_tokenizers(job)
    write_manifest(folder, manifest)
    manifest["parity"]["pictures"] = compare_pictures(job, pictures, calls)
    write_manifest(folder, manifest)
    read_bundle(folder, DRAFT_MANIFEST)  # what is published must open
