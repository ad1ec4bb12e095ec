"""Proves a bundle again on this machine: what torch gave at export is stored in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from .bundle.manifest import Bundle, Golden
from .compare import psnr, relative
from .errors import BundleError, EdgediffError, EngineError
from .generation.arguments import Arguments
from .generation.elsewhere import check_names
from .pipeline import Pipeline
from .prompts.textual_inversion import Embeddings


@dataclass(frozen=True)
class Finding:
    """A finding is one check, and what came of it."""

    what: str
    ok: bool
    detail: str


def reference(bundle: Bundle) -> str:
    """Who gave the golden tensors: torch, or the graphs that an adopted bundle was made of."""
    return str(bundle.provenance.get("reference", "torch"))


def check_provable(bundle: Bundle) -> None:
    """Raise ``BundleError`` for another exporter's folder, which says neither checksums nor what to compare with."""
    if bundle.foreign is not None:
        raise BundleError(
            f"{bundle.root} is a folder of another exporter: it holds neither checksums nor golden tensors to prove it "
            f"by; make a bundle of it: edgediff adopt {bundle.root} BUNDLE"
        )


def prove(pipe: Pipeline) -> Iterator[Finding]:
    """Run every part on its golden inputs, then draw the golden pictures, and compare with what torch gave.

    Raises:
        BundleError: the bundle holds no golden tensors, or they are damaged.
    """
    bundle = pipe.bundle
    check_provable(bundle)
    if bundle.golden is None:
        raise BundleError(f"bundle {bundle.name!r} holds no golden tensors; export it again to have some")
    tensors = read_golden(bundle, bundle.golden)
    without = Embeddings(bundle.embedding_widths or ())  # torch drew without the words that travel along
    for part in bundle.parts:
        cases = cases_of(part, tensors)
        if cases:
            yield _part(pipe, part, cases)
    limit = bundle.golden.floor
    for k, call in enumerate(bundle.golden.pictures):
        arrays = {name.split(".")[2]: v for name, v in tensors.items() if name.startswith(f"picture.{k}.")}
        try:
            arguments: dict[str, Any] = {**call, **arrays, "output_type": "np"}
            check_names(arguments)
            for step in pipe._stream(Arguments(**arguments), without):
                last = step
            decibels = psnr(last.result().array[0], _tensor(bundle, tensors, f"picture.{k}"))
        except EdgediffError as error:
            yield Finding(f"picture {k + 1}", False, str(error))
            continue
        yield Finding(f"picture {k + 1}", decibels >= limit, f"PSNR {decibels:.1f} dB, at least {limit:g}")


def read_golden(bundle: Bundle, golden: Golden) -> dict[str, NDArray[Any]]:
    try:
        from safetensors.numpy import load_file
    except ImportError as error:
        raise EngineError("the package safetensors is not installed; run: pip install safetensors") from error
    path = bundle.path("golden", golden.file)
    try:
        tensors: dict[str, NDArray[Any]] = load_file(path)
    except Exception as error:  # the library raises its own
        raise BundleError(f"bundle {bundle.name!r}: {golden.file.path} cannot be read: {error}") from error
    return tensors


def _tensor(bundle: Bundle, tensors: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    if name not in tensors:
        raise BundleError(f"bundle {bundle.name!r}: golden tensor {name!r} is missing")
    return tensors[name]


def cases_of(part: str, tensors: Mapping[str, NDArray[Any]]) -> dict[str, dict[str, dict[str, NDArray[Any]]]]:
    """A part's golden cases by number, from names PART.K.in.NAME and PART.K.out.NAME: the arrays ``in`` and ``out``."""
    out: dict[str, dict[str, dict[str, NDArray[Any]]]] = {}
    for name, value in sorted(tensors.items()):
        if name.startswith(part + "."):
            pieces = name.split(".", 3)
            if len(pieces) != 4 or pieces[2] not in ("in", "out"):
                raise BundleError(f"golden tensor {name!r} is none of PART.K.in.NAME and PART.K.out.NAME")
            out.setdefault(pieces[1], {"in": {}, "out": {}})[pieces[2]][pieces[3]] = value
    return out


def _part(pipe: Pipeline, part: str, cases: Mapping[str, dict[str, dict[str, NDArray[Any]]]]) -> Finding:
    facts = pipe.bundle.parity.get(part)
    limit = facts.get("ceiling") if isinstance(facts, dict) else None
    if not isinstance(limit, (int, float)):
        raise BundleError(f"bundle {pipe.bundle.name!r}: parity.{part}.ceiling is missing")
    try:
        worst, outside = 0.0, []
        for case in cases.values():
            shapes = {name: value.shape for name, value in case["in"].items()}
            if reason := pipe._open_parts().outside(part, shapes):
                outside.append(reason)
                continue
            outputs = pipe.engine(part, shapes)(**case["in"])
            if missing := [name for name in case["out"] if name not in outputs]:
                raise BundleError(f"golden output {missing[0]!r} is none of the part's: {list(outputs)}")
            worst = max([worst, *(relative(outputs[name], wanted) for name, wanted in case["out"].items())])
    except EdgediffError as error:
        return Finding(part, False, str(error))
    if len(outside) == len(cases):
        return Finding(part, True, f"not proved: no golden input fits the engine: {outside[0]}")
    left = f"; {len(outside)} of {len(cases)} golden inputs do not fit the engine" if outside else ""
    return Finding(
        part,
        worst <= limit,
        f"differs from {reference(pipe.bundle)} by {worst:.1e} (relative), at most {limit:g}{left}",
    )
