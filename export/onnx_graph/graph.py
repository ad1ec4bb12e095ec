"""A graph's weights stay where they are until they are written, one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..weight import Array, Weight

INLINE = 1024  # bytes; smaller weights stay in the graph's file
DATA_LIMIT = 64 << 20  # bytes; above it weights go to a file beside the graph, which engines map instead of reading
PAGE, LINE = 4096, 64  # bytes; where weights begin: large ones on a page of their own


@dataclass
class Graph:
    """An ONNX model apart from its weights: ``model`` without initialisers, and the ``weights`` that its nodes name."""

    model: onnx.ModelProto
    weights: dict[str, Weight] = field(default_factory=dict)

    def copy(self) -> Graph:
        """Copy the model; the weights stay the same ones."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        return Graph(model, dict(self.weights))

    def with_constants_alone(self) -> Graph:
        """Leave the weights out that a file holds: ``read_traced`` binds them again."""
        return Graph(self.model, {name: w for name, w in self.weights.items() if w.constant})

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return list(self.model.graph.node)

    def replace_nodes(self, nodes: list[onnx.NodeProto]) -> None:
        """Put copies of ``nodes`` in the place of the model's."""
        kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del self.model.graph.node[:]
        self.model.graph.node.extend(kept)

    def users(self) -> dict[str, list[onnx.NodeProto]]:
        """List the nodes that read each tensor."""
        out: dict[str, list[onnx.NodeProto]] = {}
        for node in self.model.graph.node:
            for name in node.input:
                out.setdefault(name, []).append(node)
        return out

    def unbound(self) -> list[str]:
        """List the tensors that nodes read and that nothing gives."""
        given = {i.name for i in self.model.graph.input} | set(self.weights) | {""}
        read: dict[str, None] = {}
        for node in self.model.graph.node:
            given |= set(node.output)
            read |= dict.fromkeys((*node.input, *_captured(node)))
        return [name for name in read if name not in given]

    def before(self, operators: Collection[str]) -> set[str]:
        """Name the nodes of these kinds and all that they depend on."""
        return {node.name for node in self._before(operators)}

    def read_before(self, operators: Collection[str]) -> set[str]:
        """Name the tensors that those nodes read."""
        return {name for node in self._before(operators) for name in node.input}

    def _before(self, operators: Collection[str]) -> list[onnx.NodeProto]:
        maker = {name: node for node in self.nodes for name in node.output}
        found: dict[str, onnx.NodeProto] = {}  # by what it gives, since nodes of other exporters may have no names
        waiting = [node for node in self.nodes if node.op_type in operators]
        while waiting:
            node = waiting.pop()
            if node.output[0] not in found:
                found[node.output[0]] = node
                waiting += [maker[name] for name in node.input if name in maker]
        return list(found.values())

    def drop_unused(self) -> None:
        """Forget nodes and weights that nothing reads."""
        read = {o.name for o in self.model.graph.output}
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.model.graph.node):
            if read & set(node.output):
                kept.append(node)
                read |= set(node.input)
                read |= _captured(node)
        if len(kept) < len(self.model.graph.node):
            self.replace_nodes(kept[::-1])
        self.weights = {name: w for name, w in self.weights.items() if name in read}

    def require(self, domain: str, version: int) -> None:
        """Let nodes of another operator domain be used."""
        if domain not in {o.domain for o in self.model.opset_import}:
            self.model.opset_import.append(helper.make_opsetid(domain, version))


def _captured(node: onnx.NodeProto) -> set[str]:
    """Collect the names that a node's subgraphs read."""
    out: set[str] = set()
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            made = {name for inner in attribute.g.node for name in inner.output}
            for inner in attribute.g.node:
                out |= (set(inner.input) | _captured(inner)) - made
    return out


def read_graph(path: Path) -> Graph:
    """Read a graph from its file; weights beside it are mapped, not read."""
    model = onnx.load(str(path), load_external_data=False)
    weights = {t.name: _stored(t, path.parent) for t in model.graph.initializer}
    del model.graph.initializer[:]
    return Graph(model, weights)


def read_traced(path: Path, bind: Callable[[str], Weight]) -> Graph:
    """Read a graph whose file holds its constants alone; ``bind`` gives each weight that its nodes name besides."""
    graph = read_graph(path)
    constants = {name: replace(w, constant=True) for name, w in graph.weights.items()}
    return Graph(graph.model, constants | {name: bind(name) for name in graph.unbound()})


def _stored(tensor: TensorProto, folder: Path) -> Weight:
    if tensor.data_location != TensorProto.EXTERNAL:
        return Weight.of(numpy_helper.to_array(tensor))
    facts = {entry.key: entry.value for entry in tensor.external_data}
    dtype, shape = helper.tensor_dtype_to_np_dtype(tensor.data_type), tuple(tensor.dims)
    place, offset = folder / facts["location"], int(facts.get("offset", 0))

    def read() -> Array:
        return np.memmap(place, dtype, "r", offset, shape)

    return Weight(shape, dtype, read, mapped=read)


@dataclass(frozen=True)
class WrittenFile:
    """A file that was written, with the digest of what went into it."""

    path: Path
    size: int
    sha256: str


def write_graph(graph: Graph, path: Path, others: dict[Path, Graph] | None = None) -> list[WrittenFile]:
    """Write a graph and its weights; the weights beside it (``.data``) where they are large.

    ``others`` are graphs by path that use the same weights under the same names, in the same folder: they share the
    file of weights.
    """
    graphs = {path: graph, **(others or {})}
    weights = {name: w for g in graphs.values() for name, w in g.weights.items()}
    large = bool(others) or sum(w.size for w in weights.values()) > DATA_LIMIT
    data = path.with_name(path.name + ".data")
    places, files = _write_data(data, weights) if large else ({}, [])
    out = []
    for place, some in graphs.items():
        model = onnx.ModelProto()
        model.CopyFrom(some.model)
        for name, weight in some.weights.items():
            if name in places:
                model.graph.initializer.append(_external(name, weight, data.name, places[name]))
            else:
                model.graph.initializer.append(numpy_helper.from_array(np.asarray(weight.read(), order="C"), name))
        whole = model.SerializeToString(deterministic=True)
        place.write_bytes(whole)
        out.append(WrittenFile(place, len(whole), hashlib.sha256(whole).hexdigest()))
    return out + files


def _write_data(path: Path, weights: dict[str, Weight]) -> tuple[dict[str, int], list[WrittenFile]]:
    digest, places, at = hashlib.sha256(), {}, 0
    with path.open("wb") as f:
        for name, piece in _pieces(weights):
            gap = -at % (PAGE if piece.nbytes > 16 * PAGE else LINE)
            places[name] = at + gap
            for chunk in (np.zeros(gap, np.uint8), piece.reshape(-1).view(np.uint8)):
                f.write(chunk.data)
                digest.update(chunk.data)
            at += gap + piece.nbytes
    return places, [WrittenFile(path, at, digest.hexdigest())]


def _pieces(weights: dict[str, Weight]) -> Iterator[tuple[str, Array]]:
    for name, weight in weights.items():
        if weight.size >= INLINE:
            yield name, np.ascontiguousarray(weight.read())


def _external(name: str, weight: Weight, location: str, offset: int) -> TensorProto:
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    tensor = TensorProto(name=name, data_type=kind, dims=weight.shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", weight.size)):
        tensor.external_data.add(key=key, value=str(value))
    return tensor
