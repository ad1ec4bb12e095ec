"""Tracing makes an ONNX graph of a torch module. The graph's weights are the module's own: nothing is copied."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch

from .attention import DOMAIN, has_fused
from .casts import drop_idle_casts
from .graph import Array, Graph, Weight

OPSET = 18
HUGE, NEVER = 1e30, 1e4  # a constant above HUGE becomes NEVER


def trace(
    module: torch.nn.Module,
    example: dict[str, torch.Tensor],
    outputs: Sequence[str],
    axes: dict[str, dict[int, str]],
) -> Graph:
    """Trace the module to a graph with named inputs (``example``'s keys), outputs and dynamic axes."""
    tensors = {**dict(module.named_buffers()), **dict(module.named_parameters(remove_duplicate=False))}
    with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        # Tracing warns about shape checks that the example satisfies; the parity check runs at another batch and size.
        warnings.simplefilter("ignore")
        path = Path(folder) / "traced.onnx"
        torch.onnx.export(
            module,
            kwargs=example,
            f=str(path),
            input_names=list(example),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
            # Weights become inputs and are bound below; otherwise the exporter holds them two or three times.
            export_params=False,
            do_constant_folding=False,
            custom_opsets={DOMAIN: 1} if has_fused(module) else None,
        )
        model = onnx.load(str(path))
    drop_idle_casts(model)
    inputs = [i for i in model.graph.input if i.name in example]
    weights = {i.name: _weight(tensors[i.name]) for i in model.graph.input if i.name not in example}
    del model.graph.input[:]
    model.graph.input.extend(sorted(inputs, key=lambda i: list(example).index(i.name)))
    graph = Graph(model, weights)
    _fold(graph)
    return graph


def _weight(tensor: torch.Tensor) -> Weight:
    values = tensor.detach()
    return Weight(tuple(values.shape), values.numpy().dtype, values.numpy)


def _fold(graph: Graph) -> None:
    """Make float constants weights, and take the nodes away that only rename or transpose a weight."""
    kept = []
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        for k, name in enumerate(node.input):
            node.input[k] = renamed.get(name, name)
        if node.op_type == "ConstantOfShape":
            for filling in node.attribute:
                filling.t.CopyFrom(onnx.numpy_helper.from_array(_within(onnx.numpy_helper.to_array(filling.t))))
        weight = graph.weights.get(node.input[0]) if node.input else None
        if weight is not None and node.op_type == "Identity":
            renamed[node.output[0]] = node.input[0]
        elif weight is not None and node.op_type == "Transpose":
            axes = tuple(next(a.ints for a in node.attribute if a.name == "perm"))
            name = f"{node.input[0]}.T"
            graph.weights[name] = Weight(
                tuple(weight.shape[a] for a in axes), weight.dtype, _transposed(weight.read, axes)
            )
            renamed[node.output[0]] = name
        elif node.op_type == "Constant" and node.attribute[0].t.data_type == onnx.TensorProto.FLOAT:
            graph.weights[node.output[0]] = Weight.of(_within(onnx.numpy_helper.to_array(node.attribute[0].t)))
        else:
            kept.append(node)
    graph.replace_nodes(kept)
    graph.drop_unused()


def _within(constant: Array) -> Array:
    """Replace the largest float32, by which masks say "never"; a number that fp16 holds tells a softmax the same."""
    if constant.dtype != np.float32:
        return constant
    return np.where(np.abs(constant) > HUGE, np.copysign(NEVER, constant), constant).astype(constant.dtype)


def _transposed(read: Callable[[], Array], axes: tuple[int, ...]) -> Callable[[], Array]:
    return lambda: read().transpose(axes)
