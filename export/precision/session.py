"""ONNX Runtime runs graphs on the CPU, with as little memory as it can."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgediff.engines.session import import_onnxruntime

from ..onnx_graph.graph import INLINE, Graph
from ..weight import Array, Weight

Feed = Mapping[str, NDArray[Any]]


def open_session(model: Path | bytes, *, exact: bool = False) -> Any:
    """Open a graph's session, made to take little memory; ``exact`` keeps every node as it is written."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # an arena grows by doubling
    if exact:
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.enable_mem_pattern = False
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED  # as listed, so that tensors go when they can
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = model if isinstance(model, bytes) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


class OpenGraph:
    """A graph that runs over weights that stay where they are: in their files, mapped. Nothing is written.

    The weights are the session's inputs, which it does not copy. What a file holds in fp16, or with its axes the other
    way round, is widened and turned just before it is used.

    Args:
        graph: the graph.
        outputs: tensors to give; the graph's own outputs where there are none.
        exact: keep every node as it is written.
    """

    def __init__(self, graph: Graph, outputs: Collection[str] = (), *, exact: bool = False) -> None:
        graph = graph.copy()
        known = {o.name for o in graph.model.graph.output}
        self._outputs = list(outputs) or [o.name for o in graph.model.graph.output]
        for name in self._outputs:
            if name not in known:
                graph.model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        self._fed: dict[str, Array] = {}
        inputs = [i for i in graph.model.graph.input if i.name not in graph.weights]  # weights may be inputs already
        del graph.model.graph.input[:]
        graph.model.graph.input.extend(inputs)
        early: list[onnx.NodeProto] = []
        for name, weight in graph.weights.items():
            if weight.size < INLINE or weight.constant:
                graph.model.graph.initializer.append(
                    numpy_helper.from_array(np.asarray(weight.read(), order="C"), name)
                )
                continue
            values, label, nodes = _fed(name, weight)
            self._fed[label] = values
            early += nodes
            kind = helper.np_dtype_to_tensor_dtype(values.dtype)
            graph.model.graph.input.append(helper.make_tensor_value_info(label, kind, list(values.shape)))
        graph.replace_nodes(list(_late([*early, *graph.nodes], {*self._fed, *graph.weights} - known)))
        self._session = open_session(graph.model.SerializeToString(), exact=exact)

    def run(self, feed: Feed) -> dict[str, NDArray[Any]]:
        """Run the graph on its inputs; give the outputs by name."""
        got = self._session.run(self._outputs, {**feed, **self._fed})
        return dict(zip(self._outputs, got, strict=True))


def run_graph(graph: Graph, feeds: Sequence[Feed], outputs: Collection[str] = ()) -> list[dict[str, NDArray[Any]]]:
    """Run the graph, every node as it is written, on each feed; give its outputs, or those tensors."""
    opened = OpenGraph(graph, outputs, exact=True)
    return [opened.run(feed) for feed in feeds]


def _fed(name: str, weight: Weight) -> tuple[Array, str, list[onnx.NodeProto]]:
    """Give what is fed for a weight, under which name, and the nodes that make the weight of it."""
    if weight.mapped is not None:
        values = weight.mapped()
        widened = values.dtype == np.float16 and weight.dtype == np.float32
        if widened or values.dtype == weight.dtype:
            return values, *_made(name, widened, weight.turned)
    return np.ascontiguousarray(weight.read()), name, []


def _made(name: str, widened: bool, turned: bool) -> tuple[str, list[onnx.NodeProto]]:
    """Name what a file holds of a weight, and write the nodes that turn and widen it."""
    steps = [("Transpose", {"perm": [1, 0]})] * turned + [("Cast", {"to": TensorProto.FLOAT})] * widened
    labels = [name + "/as_stored" * k for k in range(len(steps), -1, -1)]
    nodes = [
        helper.make_node(kind, [before], [after], name=after + "/made", **more)
        for (kind, more), before, after in zip(steps, labels, labels[1:], strict=False)
    ]
    return labels[0], nodes


def _late(nodes: Sequence[onnx.NodeProto], fixed: Collection[str]) -> Iterator[onnx.NodeProto]:
    """Order nodes so that what is made of weights alone (``fixed``) is made just before it is used first."""
    fixed = set(fixed)
    waiting: dict[str, onnx.NodeProto] = {}
    rest = []
    for node in nodes:
        if node.input and all(name in fixed for name in node.input):
            fixed |= set(node.output)
            waiting |= dict.fromkeys(node.output, node)
        else:
            rest.append(node)

    def needed(names: Sequence[str]) -> Iterator[onnx.NodeProto]:
        for name in names:
            if (node := waiting.get(name)) is not None:
                for output in node.output:
                    waiting.pop(output, None)
                yield from needed(node.input)
                yield node

    for node in rest:
        yield from needed([*node.input])
        yield node
    yield from {id(n): n for n in waiting.values()}.values()
