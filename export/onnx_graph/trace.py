"""Tracing makes an ONNX graph of a hollow torch module. No weight is read: a graph says which it wants, by name."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch

from edgediff.scratch import scratch_folder

from ..weight import Array, Weight
from .attention import has_fused
from .binding import TURNED, Bind
from .casts import drop_idle_casts
from .fused_node import DOMAIN
from .graph import Graph

OPSET = 18
HUGE, NEVER = 1e30, 1e4  # a constant above HUGE becomes NEVER


def trace(
    module: torch.nn.Module,
    example: dict[str, torch.Tensor],
    outputs: Sequence[str],
    axes: dict[str, dict[int, str]],
    bind: Bind,
) -> Graph:
    """Trace the module to a graph with named inputs (``example``'s keys), outputs and dynamic axes.

    Args:
        module: its parameters may be on the meta device; they are taken off it. Its buffers hold their values.
        example: its inputs.
        outputs: the names of its outputs.
        axes: the sizes that may change, by tensor.
        bind: gives the weight for a parameter's name.
    """
    # Weights are traced as inputs. The exporter holds those of a module several times, and works their transposes out.
    parameters, places = _take_parameters(module)
    forward, names = module.forward, list(example)

    def with_weights(*tensors: torch.Tensor) -> Any:
        for (owner, key), tensor in zip(places, tensors[len(names) :], strict=True):
            owner._parameters[key] = tensor
        out = forward(**dict(zip(names, tensors, strict=False)))
        for owner, key in places:
            del owner._parameters[key]  # the exporter wants the module as it found it
        return out

    module.forward = with_weights
    with warnings.catch_warnings(), torch.no_grad(), scratch_folder() as folder:
        # Tracing warns about shape checks that the example satisfies; the parity check runs at another batch and size.
        warnings.simplefilter("ignore")
        path = folder / "traced.onnx"
        torch.onnx.export(
            module,
            (*example.values(), *parameters.values()),
            f=str(path),
            input_names=[*example, *parameters],
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
            export_params=False,
            do_constant_folding=False,
            custom_opsets={DOMAIN: 1} if has_fused(module) else None,
        )
        model = onnx.load(str(path))
    drop_idle_casts(model)
    inputs = {i.name: i for i in model.graph.input}
    buffers = dict(module.named_buffers())
    del model.graph.input[:]
    model.graph.input.extend(inputs[name] for name in example)
    constants = {name: Weight.of(buffers[name].numpy(), constant=True) for name in inputs if name in buffers}
    graph = Graph(model, constants)
    _fold(graph, bind)
    return graph


def _take_parameters(module: torch.nn.Module) -> tuple[dict[str, torch.Tensor], list[tuple[torch.nn.Module, str]]]:
    """Take the parameters off a module; return tensors of their shapes that take no memory, and where each was."""
    parameters, places = {}, []
    for path, owner in module.named_modules():
        for key, parameter in list(owner._parameters.items()):
            if parameter is not None:
                del owner._parameters[key]
                parameters[f"{path}.{key}"] = torch.zeros(()).expand(parameter.shape)
                places.append((owner, key))
    return parameters, places


def _fold(graph: Graph, bind: Bind) -> None:
    """Make float constants weights, bind the rest, and take the nodes away that only rename or transpose a weight."""
    weights = {name: bind(name) for name in graph.unbound()}
    kept = []
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        for k, name in enumerate(node.input):
            node.input[k] = renamed.get(name, name)
        if node.op_type == "ConstantOfShape":
            for filling in node.attribute:
                filling.t.CopyFrom(onnx.numpy_helper.from_array(_within(onnx.numpy_helper.to_array(filling.t))))
        weight = weights.get(node.input[0]) if node.input else None
        if weight is not None and node.op_type == "Identity":
            renamed[node.output[0]] = node.input[0]
        elif weight is not None and node.op_type == "Transpose" and len(weight.shape) == 2:
            renamed[node.output[0]] = name = f"{node.input[0]}{TURNED}"
            weights[name] = bind(name)
        elif node.op_type == "Constant" and node.attribute[0].t.data_type == onnx.TensorProto.FLOAT:
            values = _within(onnx.numpy_helper.to_array(node.attribute[0].t))
            graph.weights[node.output[0]] = Weight.of(values, constant=True)
        else:
            kept.append(node)
    graph.weights |= weights
    graph.replace_nodes(kept)
    graph.drop_unused()


def _within(constant: Array) -> Array:
    """Replace the largest float32, by which masks say "never"; a number that fp16 holds tells a softmax the same."""
    if constant.dtype != np.float32:
        return constant
    return np.where(np.abs(constant) > HUGE, np.copysign(NEVER, constant), constant).astype(constant.dtype)
