"""The steps of an export. Each finds what it wrote before it was interrupted, and says what it wrote."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from numpy.typing import NDArray

from edgediff.bundle.manifest import MANIFEST, PLAIN, WEIGHTS, Bundle, sha256
from edgediff.bundle.reading import read_bundle
from edgediff.compare import psnr
from edgediff.errors import EngineError

from . import golden
from .facts import encoders_of
from .graph import Written, read, write
from .parts import Recipe, run
from .precision import PLAIN_NAME, PRECISIONS, make, prove_fp32, seen_graph
from .preview import fit_preview
from .progress import Progress
from .rescue import session, worst_nodes
from .source import Source
from .trace import trace
from .turns import Run, by_torch, let_go, pipeline
from .work import Work

_ONNX_TYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64", onnx.TensorProto.FLOAT16: "float16"}
PICTURES = "pictures"
PREVIEW_SIDE = 256  # pixels, at most


@dataclass(frozen=True)
class Job:
    """One export: what is read, what is asked for, where it grows."""

    source: Source
    facts: dict[str, Any]
    recipes: list[Recipe]
    precision: dict[str, str]  # by part
    work: Work
    progress: Progress
    pictures: torch.Tensor | None
    size: int  # of the model in fp32, bytes

    @property
    def floor(self) -> float:
        """The least PSNR of the final pictures, dB: that of the lowest precision."""
        return min(PRECISIONS[p].floor for p in self.precision.values())

    def path(self, part: str) -> Path:
        """Where a part's fp32 graph lies: in the bundle itself where it stays so."""
        folder = self.work.bundle if self.precision[part] == "fp32" else self.work.root / "fp32"
        return folder / f"{part}.onnx"

    def case_file(self, name: str) -> Path:
        return self.work.root / "cases" / f"{name}.safetensors"

    def cases(self, part: str) -> list[golden.Case]:
        """Golden inputs and outputs: an example at another batch and size than the traced one, and real calls."""
        return golden.load_cases([self.case_file(part), self.case_file(PICTURES)], part)

    def scratch(self) -> Path:
        path = self.work.root / "scratch"
        path.mkdir(exist_ok=True)
        return path

    def step(self, name: str, do: Callable[[], tuple[Any, list[Path]]]) -> Any:
        """What the step says of itself, done now or before."""
        if (found := self.work.found(name)) is not None:
            self.progress.skip(name)
            return found
        self.progress.start(name)
        facts, files = do()
        self.work.finish(name, facts, files)
        let_go(self.size)
        return facts


def trace_part(job: Job, recipe: Recipe) -> dict[str, Any]:
    """A part in fp32, and torch's outputs on its example."""

    def do() -> tuple[Any, list[Path]]:
        module = recipe.wrap(job.source.load(recipe.component))
        inputs = {name: t.numpy() for name, t in recipe.example(2, 2).items()}
        outputs = dict(zip(recipe.outputs, (t.numpy() for t in run(recipe, module, 2, 2)), strict=True))
        path, cases = job.path(recipe.name), job.case_file(recipe.name)
        path.parent.mkdir(exist_ok=True)
        graph = trace(module, recipe.example(1, 1), recipe.outputs, recipe.axes)
        files = write(graph, path)
        golden.store(cases, golden.flat(recipe.name, [(inputs, outputs)]))
        example = [t.shape for t in run(recipe, module, 1, 1)]
        described = {
            "files": _entries(files, "fp32"),
            "inputs": [
                _tensor(t, [d.dim_param or d.dim_value for d in _kind(t).shape.dim]) for t in graph.model.graph.input
            ],
            # Tracing invents names for output sizes that it cannot infer: take ours, and the example's numbers.
            "outputs": [
                _tensor(t, [recipe.axes[t.name].get(k, size) for k, size in enumerate(shape)])
                for t, shape in zip(graph.model.graph.output, example, strict=True)
            ],
        }
        return {"part": described}, [*(f.path for f in files), cases]

    found: dict[str, Any] = job.step(f"{recipe.name}: tracing", do)
    return found


def write_tokenizers(job: Job) -> list[dict[str, Any]]:
    """``tokenizer.json``, one a text encoder."""
    out = []
    for _, name in encoders_of(job.source):
        path = job.work.bundle / f"{name}.json"
        job.source.tokenizer(name).backend_tokenizer.save(str(path))
        out.append(entry(job.work.bundle, path, "tokenizers", "-"))
    return out


def draw_reference(job: Job, manifest: dict[str, Any]) -> dict[str, Any]:
    """The golden pictures by torch, and what its parts were asked and answered on the way."""

    def do() -> tuple[Any, list[Path]]:
        with drafted(job, manifest) as bundle:
            pipe, engines = pipeline(bundle, {r.name: _opener(by_torch, r, job.source) for r in job.recipes}, job.size)
            calls = golden.picture_arguments(bundle)
            pictures = golden.draw(pipe, calls)
        tensors: dict[str, NDArray[Any]] = {f"picture.{k}": p for k, p in enumerate(pictures)}
        for k, call in enumerate(calls):
            tensors |= {f"picture.{k}.{name}": v for name, v in golden.picture_arrays(bundle, call).items()}
        for name, engine in engines.items():
            if not engine.calls:
                continue
            # The first call, from pure noise, and the last of the first picture.
            last = len(engine.calls) // len(calls) - 1
            tensors |= golden.flat(name, [engine.calls[k] for k in sorted({0, max(0, last)})], 1)
        golden.store(job.case_file(PICTURES), tensors)
        return {"calls": calls}, [job.case_file(PICTURES)]

    found: dict[str, Any] = job.step("pictures by torch", do)
    return found


def fit(job: Job) -> dict[str, Any] | None:
    """The preview matrix."""

    def do() -> tuple[Any, list[Path]]:
        side = min(job.facts["defaults"]["width"], PREVIEW_SIDE)
        return fit_preview(job.source.load("vae"), job.facts["latent"]["factor"], side, job.pictures), []

    if not job.source.has("vae"):
        return None
    found: dict[str, Any] = job.step("preview: fitting", do)
    return found


def make_part(job: Job, recipe: Recipe, described: dict[str, Any]) -> dict[str, Any]:
    """A part in its precision, held against torch."""
    precision, name = job.precision[recipe.name], recipe.name

    def do() -> tuple[Any, list[Path]]:
        path, cases = job.work.bundle / f"{name}.onnx", job.cases(name)
        files, kept = [], {}
        if precision == "fp32":
            proof = prove_fp32(name, path, cases)
        else:
            files, proof, kept = make(name, read(job.path(name)), precision, cases, path, job.scratch())
        part = {**described, "files": _entries(files, precision) if files else described["files"]}
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

    found: dict[str, Any] = job.step(f"{name}: {precision}", do)
    return found


def store_golden(job: Job) -> dict[str, Any]:
    """The golden tensors in the bundle."""
    from safetensors.numpy import load_file

    names = [*(r.name for r in job.recipes), PICTURES]
    path = job.work.bundle / golden.FILE
    golden.store(path, {k: v for name in names for k, v in load_file(job.case_file(name)).items()})
    return {"file": entry(job.work.bundle, path, "golden", "-")}


@contextlib.contextmanager
def drafted(job: Job, manifest: dict[str, Any]) -> Iterator[Bundle]:
    """The bundle so far, over a copy of its manifest and tokenizers: the work folder itself never looks like one."""
    with tempfile.TemporaryDirectory(dir=job.work.root) as folder:
        for text in manifest["text"]:
            shutil.copy(job.work.bundle / text["file"]["path"], folder)
        # Pictures are proved without the words that travel along: torch drew them without.
        write_manifest(Path(folder), {k: v for k, v in manifest.items() if k != "embeddings"})
        yield read_bundle(folder)


def compare_pictures(job: Job, manifest: dict[str, Any]) -> dict[str, Any]:
    """PSNR of the golden pictures by the exported parts, as the engines they are made for will draw them.

    Raises:
        EngineError: below the floor; the message names the U-Net's worst nodes.
    """
    from safetensors.numpy import load_file

    job.progress.start("pictures compared")
    wanted = load_file(job.case_file(PICTURES))
    with drafted(job, manifest) as bundle:
        openers = {r.name: _opener(_by_onnxruntime, job, bundle, r.name) for r in job.recipes}
        pictures = golden.draw(pipeline(bundle, openers, job.size)[0], manifest["golden"]["pictures"])
    found = [round(psnr(p, wanted[f"picture.{k}"]), 2) for k, p in enumerate(pictures)]
    job.progress.say(f"pictures: PSNR {', '.join(f'{v:.1f}' for v in found)} dB, at least {job.floor:g}")
    if min(found) < job.floor:
        raise EngineError(
            f"the pictures of this bundle are {min(found):.1f} dB (PSNR) from torch's, below the floor of "
            f"{job.floor:g} dB{_blame(job)}"
        )
    return {"psnr": found, "floor": job.floor}


def _blame(job: Job) -> str:
    precision = job.precision["unet"]
    graph, seen = seen_graph(read(job.path("unet")), precision, ())
    feed = job.cases("unet")[-1][0]
    worst = worst_nodes(graph, seen, feed, job.scratch(), PRECISIONS[precision].changes)
    named = "; ".join(f"{k} adds {v:.1%}" for k, v in list(worst.items())[:3])
    return f"; the U-Net's worst nodes: {named}" if named else ""


def _by_onnxruntime(job: Job, bundle: Bundle, name: str) -> Run:
    """A part as it shows on a CPU."""
    precision, part = job.precision[name], bundle.parts[name]
    names = [t.name for t in part.outputs]
    path = job.work.bundle / part.files[0].path
    if PRECISIONS[precision].seen is not None:
        kept = job.work.found(f"{name}: {precision}")["parity"].get("kept_fp32", {})
        path = job.scratch() / f"{name}.onnx"
        write(seen_graph(read(job.path(name)), precision, kept)[1], path)
    opened = session(path)
    return lambda **inputs: dict(zip(names, opened.run(names, inputs), strict=True))


def _opener(make_run: Callable[..., Run], *arguments: Any) -> Callable[[], Run]:
    return lambda: make_run(*arguments)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def _entries(files: list[Written], precision: str) -> list[dict[str, Any]]:
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


def entry(folder: Path, path: Path, engine: str, precision: str) -> dict[str, Any]:
    """A file as the manifest lists it."""
    return {
        "engine": engine,
        "precision": precision,
        "path": path.relative_to(folder).as_posix(),
        "size": path.stat().st_size,
        "sha256": sha256(path),
    }


def _kind(value: Any) -> Any:
    return value.type.tensor_type


def _tensor(value: Any, shape: list[int | str]) -> dict[str, Any]:
    return {"name": value.name, "dtype": _ONNX_TYPES[_kind(value).elem_type], "shape": shape}
