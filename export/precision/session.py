"""ONNX Runtime runs graphs on the CPU, with as little memory as it can."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgediff.engines.onnxruntime import import_onnxruntime

from ..onnx_graph.graph import Graph, write_graph

Feed = Mapping[str, NDArray[Any]]


def open_session(path: Path, *, exact: bool = False) -> Any:
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
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run_graph(
    graph: Graph, feeds: Sequence[Feed], scratch: Path, outputs: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Run the graph on each feed; give its outputs, or those tensors. ``scratch`` has room for the weights."""
    graph = graph.copy()
    names = list(outputs) or [o.name for o in graph.model.graph.output]
    known = {o.name for o in graph.model.graph.output}
    for name in names:
        if name not in known:
            graph.model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder) / "probed.onnx"
        write_graph(graph, path)
        opened = open_session(path, exact=True)
        return [dict(zip(names, opened.run(names, dict(feed)), strict=True)) for feed in feeds]
