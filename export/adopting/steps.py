"""The steps of an adoption: parts in their precision, the preview's fit, the tokenizers, the pictures compared."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgediff.bundle.manifest import Bundle
from edgediff.bundle.reading import read_bundle
from edgediff.compare import psnr
from edgediff.engines.choose import Parts
from edgediff.errors import EngineError
from edgediff.generation.autoencoder import Autoencoder
from edgediff.prompts.tokenizer import Tokenizer

from ..manifest import DRAFT_MANIFEST, file_entry, graph_entries
from ..onnx_graph.graph import Graph, read_graph
from ..precision.precisions import PRECISIONS, Case, parity_entry, seen_graph, write_part
from ..precision.session import OpenGraph, open_session
from ..progress import Progress
from ..proof.golden import picture_arrays
from ..proof.lazy_pipeline import EngineCall, pipeline_of
from ..workspace import Workspace
from .preview import fit_preview
from .rewire import rewired
from .widen import is_half, widened

PREVIEW_SIDE = 256  # pixels, at most


@dataclass
class Adoption:
    """One adoption, as its steps share it. ``kept`` names the nodes of each part that stayed in fp32."""

    source: Bundle
    precision: dict[str, str]  # by part
    workspace: Workspace
    progress: Progress
    size: int  # of the source, bytes
    kept: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def floor(self) -> float:
        """The least PSNR of the pictures, dB: that of the lowest precision."""
        return min(PRECISIONS[p].floor for p in self.precision.values())

    def graph(self, part: str) -> Graph:
        """Read the source's graph, in fp32 and with our names."""
        assert self.source.foreign is not None
        graph = read_graph(self.source.root / self.source.parts[part].files[0].path)
        graph = widened(graph, part) if is_half(graph) else graph
        return rewired(graph, part, self.source.parts[part], self.source.foreign.parts[part])


def make_part(job: Adoption, part: str, cases: list[Case]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make a part in its precision, and hold it against the source's answers; return its entry, and what was found.

    Raises:
        BundleError: a graph that cannot be rewired.
        EngineError: further from its source than the precision may be.
    """
    precision = job.precision[part]
    job.progress.start(f"{part}: {precision}")
    files, proof, kept = write_part(part, job.graph(part), precision, cases, job.workspace.bundle / f"{part}.onnx")
    job.kept[part] = kept
    parity = parity_entry(precision, proof, kept)
    more = f"; {len(kept)} nodes stay in fp32" if kept else ""
    job.progress.say(f"{part}: {precision} is {proof.relative:.1e} from its source (relative){more}")
    shown = job.source.parts[part]
    described = {
        side: [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in tensors]
        for side, tensors in (("inputs", shown.inputs), ("outputs", shown.outputs))
    }
    gc.collect()
    return {"files": graph_entries(files, precision), **described}, parity


def write_tokenizers(job: Adoption) -> list[dict[str, Any]]:
    """Write ``tokenizer.json``, one a text encoder."""
    out = []
    for k, text in enumerate(job.source.text):
        path = job.workspace.bundle / f"tokenizer{'_2' * k}.json"
        Tokenizer(job.source.root / text.file.path, text.max_length, text.pad_id).save(path)
        entry = file_entry(job.workspace.bundle, path, "tokenizers", "-")
        out.append({"file": entry, "max_length": text.max_length, "pad_id": text.pad_id})
    return out


def fit_previews(job: Adoption) -> dict[str, Any]:
    """Fit the preview matrix; empty where there is no encoder to fit it by."""
    if "vae_encoder" not in job.source.parts:
        return {}
    latent, defaults = job.source.latent, job.source.defaults
    shape = job.source.parts["vae_encoder"].inputs[0].shape
    sides = []
    for size, default in zip(shape[2:], (defaults.height, defaults.width), strict=True):
        most = max(latent.size_multiple, min(PREVIEW_SIDE, default) // latent.size_multiple * latent.size_multiple)
        sides.append(size if isinstance(size, int) else most)
    return fit_preview(Autoencoder(Parts(job.source)), sides[1], sides[0])


def compare_pictures(
    job: Adoption, references: Mapping[str, NDArray[Any]], calls: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Draw the golden pictures by the bundle's parts, as the engines they are made for will; measure their PSNR.

    Raises:
        EngineError: below the floor.
    """
    job.progress.start("pictures compared")
    bundle = read_bundle(job.workspace.bundle, DRAFT_MANIFEST)
    pipe, _ = pipeline_of(bundle, {part: partial(_open, job, bundle, part) for part in bundle.parts}, job.size)
    psnrs = []
    for k, call in enumerate(calls):
        arguments: dict[str, Any] = {**call, **picture_arrays(bundle, call, from_picture=False), "output_type": "np"}
        picture = np.asarray(pipe(**arguments).images[0])
        psnrs.append(round(psnr(picture, references[f"picture.{k}"]), 2))
    job.progress.say(f"pictures: PSNR {', '.join(f'{v:.1f}' for v in psnrs)} dB, at least {job.floor:g}")
    if min(psnrs) < job.floor:
        raise EngineError(
            f"the pictures of this bundle are {min(psnrs):.1f} dB (PSNR) from its source's, below the floor of "
            f"{job.floor:g} dB; take a higher precision, or give the U-Net one: --part-precision unet=fp16-weights"
        )
    return {"psnr": psnrs, "floor": job.floor}


def _open(job: Adoption, bundle: Bundle, part: str) -> EngineCall:
    """Open a part as it shows on a CPU."""
    precision, names = job.precision[part], [t.name for t in bundle.parts[part].outputs]
    path = job.workspace.bundle / bundle.parts[part].files[0].path
    if PRECISIONS[precision].seen is not None:
        open_session(path)  # what is shipped must open, though another graph shows what it gives
        seen = OpenGraph(seen_graph(job.graph(part), precision, job.kept[part])[1])
        return lambda **inputs: seen.run(inputs)
    session = open_session(path)
    return lambda **inputs: dict(zip(names, session.run(names, inputs), strict=True))
