"""A bundle has one of five precisions; a part's fp32 graph becomes each within a ceiling of error."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgediff.compare import relative
from edgediff.errors import EngineError

from ..onnx_graph.fused_node import FUSED, plain
from ..onnx_graph.graph import Graph, WrittenFile, write_graph
from .fp16 import rounded, to_fp16
from .quantize import CHANNEL, multiply_int8, store_fp16, store_int8
from .sensitive_nodes import Probe, unfit_for_fp16, worst_nodes
from .session import Feed, OpenGraph

Case = tuple[Feed, Feed]  # inputs, and torch's outputs
Change = Callable[[Graph, Collection[str]], Graph]
ROUNDS = 12  # of leaving more nodes in fp32
LEAST_GAIN = 0.95  # three rounds that leave more than this of the error end them
WORST_SHARE = 0.3  # of the worst nodes, in a round
PLAIN_NAME = ".plain.onnx"  # ends the name of a graph for TensorRT


@dataclass(frozen=True)
class Precision:
    """A precision says how a graph changes, and how far from torch in fp32 it may then be.

    ``change`` makes the graph that is shipped of the fp32 one and the names of nodes to leave in fp32. ``seen`` makes
    the graph that shows on a CPU what it will give, where that is another (the plain one is then shipped too).
    ``ceiling`` bounds a part's relative error (2-norm) on the golden inputs, ``floor`` (dB) the PSNR of the final
    pictures.
    """

    change: Change
    ceiling: float
    floor: float
    seen: Change | None = None
    changes: tuple[str, ...] = ()  # the operators that it changes; all where empty


def _changed(change: Callable[[Graph, Collection[str]], int]) -> Change:
    def apply(graph: Graph, keep: Collection[str]) -> Graph:
        out = graph.copy()
        change(out, keep)
        return out

    return apply


PRECISIONS: dict[str, Precision] = {
    "fp32": Precision(lambda graph, keep: graph, 1e-4, 60.0),
    "fp16": Precision(to_fp16, 2e-2, 35.0, lambda graph, keep: rounded(plain(graph), keep)),
    "fp16-weights": Precision(_changed(store_fp16), 1e-2, 40.0),
    "int8": Precision(_changed(store_int8), 3e-2, 25.0, changes=tuple(CHANNEL)),
    "int8-dynamic": Precision(_changed(multiply_int8), 3e-2, 20.0, changes=("MatMul", "Add")),
}


@dataclass(frozen=True)
class Proof:
    """A proof says how far a part is from torch over the golden inputs, and which of them is the worst."""

    max_abs: float
    relative: float
    worst: int


def parity_entry(precision: str, proof: Proof, kept: dict[str, str]) -> dict[str, Any]:
    """Describe a part's proof as the manifest lists it: how near it is, and the nodes left in fp32."""
    entry: dict[str, Any] = {
        "precision": precision,
        "max_abs": float(f"{proof.max_abs:.3e}"),
        "relative": float(f"{proof.relative:.3e}"),
        "ceiling": PRECISIONS[precision].ceiling,
    }
    return entry | ({"kept_fp32": kept} if kept else {})


def write_part(
    name: str, graph: Graph, precision: str, cases: Sequence[Case], path: Path
) -> tuple[list[WrittenFile], Proof, dict[str, str]]:
    """Write a part in a precision, leaving nodes in fp32 until it is as near to torch as its ceiling says.

    Args:
        name: the part's, for messages.
        graph: in fp32.
        cases: golden inputs and outputs; the inputs also show which activations are too large for fp16.
        path: of the .onnx file.

    Returns:
        The files, the proof, and the nodes left in fp32 with the reason for each.

    Raises:
        EngineError: above the ceiling still; the message names the worst nodes.
    """
    rules = PRECISIONS[precision]
    feeds = [inputs for inputs, _ in cases]
    kept = unfit_for_fp16(plain(graph), feeds) if precision == "fp16" else {}
    reference, seen = seen_graph(graph, precision, kept)
    probe, errors, worst = Probe(reference), [], dict[str, float]()
    while True:
        proof = compare(name, OpenGraph(seen).run, cases)
        errors.append(proof.relative)
        if proof.relative <= rules.ceiling:
            return _written(graph, rules, kept, seen, path), proof, kept
        if precision == "fp32" or _stuck(errors):
            break
        feed = feeds[proof.worst]
        worst = {k: v for k, v in worst_nodes(probe, seen, feed, rules.changes).items() if k not in kept}
        if not worst:
            break
        for node in list(worst)[: max(1, round(WORST_SHARE * len(worst)))]:
            kept[node] = f"adds {worst[node]:.1%} of error"
        seen = seen_graph(graph, precision, kept)[1]
    named = "; ".join(f"{k} adds {v:.1%}" for k, v in list(worst.items())[:3]) or "none adds much by itself"
    raise EngineError(
        f"{name}: {precision} differs from torch by {proof.relative:.2e} (relative), above the ceiling "
        f"{rules.ceiling:g}, with {len(kept)} nodes left in fp32; the worst nodes: {named}"
    )


def prove_fp32(name: str, graph: Graph, cases: Sequence[Case]) -> Proof:
    """Hold a part as it was traced against torch; ``EngineError`` above the ceiling."""
    proof, ceiling = compare(name, OpenGraph(graph).run, cases), PRECISIONS["fp32"].ceiling
    if not proof.relative <= ceiling:
        raise EngineError(
            f"{name}: fp32 differs from torch by {proof.relative:.2e} (relative), above the ceiling {ceiling:g}"
        )
    return proof


def _stuck(errors: Sequence[float]) -> bool:
    """Whether rounds of leaving nodes in fp32 do not help any more."""
    return len(errors) > ROUNDS or (len(errors) > 3 and not errors[-1] < LEAST_GAIN * errors[-4])


def seen_graph(graph: Graph, precision: str, kept: Collection[str]) -> tuple[Graph, Graph]:
    """Make two graphs with tensors of the same names: in fp32, and as this precision shows on a CPU."""
    rules = PRECISIONS[precision]
    return (plain(graph), rules.seen(graph, kept)) if rules.seen else (graph, rules.change(graph, kept))


def _written(graph: Graph, rules: Precision, kept: dict[str, str], seen: Graph, path: Path) -> list[WrittenFile]:
    """Write what ships: the graph that was seen, or the one with fused attention and the one without, over the same
    weights.
    """
    if rules.seen is None:
        return write_graph(seen, path)
    # A fused node stays in fp32 when a piece of its plain form does.
    fused = [n.name for n in graph.nodes if n.op_type == FUSED and any(k.startswith(n.name + "/") for k in kept)]
    others = {}
    if any(n.op_type == FUSED for n in graph.nodes):
        others[path.with_name(path.stem + PLAIN_NAME)] = rules.change(plain(graph), kept)
    return write_graph(rules.change(graph, {*fused, *kept}), path, others)


def compare(name: str, run: Callable[[Feed], Mapping[str, NDArray[Any]]], cases: Sequence[Case]) -> Proof:
    """Hold a part's outputs, as ``run`` gives them for its inputs, against torch's.

    Raises:
        EngineError: torch's output is not finite.
    """
    max_abs, errors = 0.0, []
    for inputs, outputs in cases:
        worst = 0.0
        got = run(inputs)
        for label, expected in outputs.items():
            output = got[label]
            if not np.isfinite(expected).all():
                raise EngineError(f"{name}: output {label} of torch is not finite; check the weights")
            worst = max(worst, relative(output, expected))
            with np.errstate(invalid="ignore"):
                max_abs = max(max_abs, float(np.nan_to_num(np.abs(output - expected).max(), nan=np.inf)))
        errors.append(worst)
    return Proof(max_abs, max(errors), int(np.argmax(errors)))
