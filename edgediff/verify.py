"""Proves a bundle again on this machine: what torch gave at export is stored in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from .bundle.golden import Case, cases_of, check_case, golden_picture, read_golden
from .bundle.manifest import Bundle, Golden
from .compare import psnr, relative
from .errors import BundleError, EdgediffError, shown
from .generation.arguments import Arguments
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
        raise BundleError(f"bundle {shown(bundle.name)} holds no golden tensors; export it again to have some")
    tensors = read_golden(bundle, bundle.golden)
    for part in bundle.parts:
        cases = cases_of(part, tensors)
        if cases:
            yield _part(pipe, part, cases)
    for k in range(len(bundle.golden.pictures)):
        yield _picture(pipe, bundle.golden, k, tensors)


def _picture(pipe: Pipeline, golden: Golden, k: int, tensors: Mapping[str, NDArray[Any]]) -> Finding:
    without = Embeddings(pipe.bundle.embedding_widths or ())  # torch drew without the words that travel along
    try:
        stored = golden_picture(golden, k, tensors)
        for step in pipe._stream(Arguments(**stored.arguments, output_type="np"), without):
            last = step
        decibels = psnr(last.result().array[0], stored.picture)
    except EdgediffError as error:
        return Finding(f"picture {k + 1}", False, str(error))
    return Finding(f"picture {k + 1}", decibels >= golden.floor, f"PSNR {decibels:.1f} dB, at least {golden.floor:g}")


def _part(pipe: Pipeline, part: str, cases: Mapping[str, Case]) -> Finding:
    facts = pipe.bundle.parity.get(part)
    limit = facts.get("ceiling") if isinstance(facts, dict) else None
    if not isinstance(limit, (int, float)):
        raise BundleError(f"bundle {shown(pipe.bundle.name)}: parity.{part}.ceiling is missing")
    try:
        worst, outside = 0.0, []
        for case in cases.values():
            check_case(part, pipe.bundle.parts[part], case)
            shapes = {name: value.shape for name, value in case["in"].items()}
            if reason := pipe._open_parts().outside(part, shapes):
                outside.append(reason)
                continue
            outputs = pipe.engine(part, shapes)(**case["in"])
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
