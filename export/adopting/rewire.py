"""A graph of another exporter takes the names, types and sizes that a bundle's part has."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgediff.bundle.foreign.adaptation import Adaptation
from edgediff.bundle.manifest import Part, Tensor
from edgediff.errors import BundleError, choices

from ..onnx_graph.graph import Graph
from ..weight import Array, Weight

OURS = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
# Operators that take a list of one number for a number: weights are written as such.
BROADCAST = ("Add", "Sub", "Mul", "Div", "Pow", "Where", "Max", "Min", "Equal", "Less", "Greater", "Pad")
# What may lie between a whole timestep and the cast that makes a float of it.
MOVES = ("Unsqueeze", "Squeeze", "Reshape", "Expand", "Identity", "Gather", "Tile")


def rewired(graph: Graph, name: str, part: Part, adaptation: Adaptation) -> Graph:
    """Give a graph in fp32 the inputs and outputs of a part.

    Args:
        graph: with weights and no type but fp32 among its floats.
        name: the part's, for messages.
        part: as the bundle lists it.
        adaptation: which of the graph's tensors is which of the part's.

    Raises:
        BundleError: a graph that takes whole timesteps in a way that is not known.
    """
    out = graph.copy()
    _name_nodes(out)
    _fold(out)
    _take_ours(out, part, adaptation)
    _give_ours(out, part, adaptation)
    if "timestep" in adaptation.inputs:
        _take_times(out, name, adaptation)
        _keep_tables(out)
    del out.model.graph.value_info[:]
    out.drop_unused()
    return out


def _name_nodes(graph: Graph) -> None:
    """Every node needs a name of its own: precisions keep nodes by it."""
    seen: set[str] = set()
    for k, node in enumerate(graph.model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}/{k}"
        seen.add(node.name)


def _fold(graph: Graph) -> None:
    """Take the nodes away that only rename or transpose a weight, and make weights of constants of floats."""
    users = graph.users()
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.nodes:
        for k, read in enumerate(node.input):
            node.input[k] = renamed.get(read, read)
        weight = graph.weights.get(node.input[0]) if node.input else None
        if weight is not None and node.op_type == "Identity":
            renamed[node.output[0]] = node.input[0]
        elif weight is not None and node.op_type == "Transpose" and node.attribute:
            axes = tuple(node.attribute[0].ints)
            turned = f"{node.input[0]}.T{''.join(map(str, axes))}"
            shape = tuple(weight.shape[a] for a in axes)
            graph.weights[turned] = Weight(shape, weight.dtype, _transposed(weight.read, axes))
            renamed[node.output[0]] = turned
        elif (values := _float_constant(node)) is not None and (
            values.ndim or all(user.op_type in BROADCAST for user in users.get(node.output[0], []))
        ):
            graph.weights[node.output[0]] = Weight.of(values)
        else:
            kept.append(node)
    for value in graph.model.graph.output:
        if value.name in renamed:
            kept.append(helper.make_node("Identity", [renamed[value.name]], [value.name], name=f"{value.name}/given"))
    single = {key: w for key, w in graph.weights.items() if not w.shape and w.dtype != np.float32}
    graph.replace_nodes([*(_as_node(key, weight) for key, weight in single.items()), *kept])
    graph.weights = {key: weight for key, weight in graph.weights.items() if key not in single}


def _as_node(name: str, weight: Weight) -> onnx.NodeProto:
    """A weight as a constant of the graph, which keeps its shape and its type in every precision."""
    values = weight.read()
    value = numpy_helper.from_array(np.ascontiguousarray(values).reshape(values.shape))
    return helper.make_node("Constant", [], [name], name=f"{name}/constant", value=value)


def _transposed(read: Callable[[], Array], axes: tuple[int, ...]) -> Callable[[], Array]:
    return lambda: read().transpose(axes)


def _float_constant(node: onnx.NodeProto) -> Array | None:
    if node.op_type != "Constant" or len(node.attribute) != 1 or node.attribute[0].name != "value":
        return None
    tensor = node.attribute[0].t
    return numpy_helper.to_array(tensor) if tensor.data_type == TensorProto.FLOAT else None


def _take_ours(graph: Graph, part: Part, adaptation: Adaptation) -> None:
    """Ids come as int64, everything else as float32, under our names and sizes."""
    nodes = graph.nodes
    for tensor in part.inputs:
        port = adaptation.inputs[tensor.name]
        if tensor.name == "input_ids" and port.dtype == "int32":
            nodes = _reading(nodes, port.name, f"{port.name}/int32")
            cast = helper.make_node(
                "Cast", [port.name], [f"{port.name}/int32"], name=f"{port.name}/cast", to=TensorProto.INT32
            )
            nodes.insert(0, cast)
    graph.replace_nodes(nodes)
    del graph.model.graph.input[:]
    graph.model.graph.input.extend(_value(tensor) for tensor in part.inputs)


def _reading(nodes: list[onnx.NodeProto], old: str, new: str) -> list[onnx.NodeProto]:
    """The nodes, reading one tensor in the place of another."""
    for node in nodes:
        for k, read in enumerate(node.input):
            if read == old:
                node.input[k] = new
    return nodes


def _value(tensor: Tensor) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, OURS[tensor.dtype], list(tensor.shape))


def _give_ours(graph: Graph, part: Part, adaptation: Adaptation) -> None:
    """Outputs are renamed, or cut in halves; a tensor that has one of our names by chance gets another."""
    nodes = graph.nodes
    ours = {tensor.name for tensor in part.outputs}
    for node in nodes:
        for names in (node.input, node.output):
            for k, name in enumerate(names):
                names[k] = f"{name}/graph" if name in ours else name
    made = []
    for tensor in part.outputs:
        given = adaptation.outputs[tensor.name]
        source = f"{given.port.name}/graph" if given.port.name in ours else given.port.name
        if given.half is None:
            made.append(helper.make_node("Identity", [source], [tensor.name], name=f"{tensor.name}/given"))
            continue
        channels = int(tensor.shape[1])
        bounds = {"start": given.half * channels, "end": (given.half + 1) * channels, "axis": 1}
        for label, value in bounds.items():
            graph.weights[f"{tensor.name}/{label}"] = Weight.of(np.array([value], np.int64))
        inputs = [source, *(f"{tensor.name}/{label}" for label in bounds)]
        made.append(helper.make_node("Slice", inputs, [tensor.name], name=f"{tensor.name}/given"))
    graph.replace_nodes([*nodes, *made])
    del graph.model.graph.output[:]
    graph.model.graph.output.extend(_value(tensor) for tensor in part.outputs)


def _take_times(graph: Graph, name: str, adaptation: Adaptation) -> None:
    """One timestep an image comes in; a graph that takes one for all reads the first. Whole ones become floats."""
    port = adaptation.inputs["timestep"]
    if port.dtype.startswith("int"):
        _check_whole(graph, name)
    nodes = graph.nodes
    if port.shape == () or (len(port.shape) == 1 and port.shape[0] != "?"):
        nodes = _reading(nodes, "timestep", "timestep/first")
        index = np.array(0 if port.shape == () else [0], np.int64)
        nodes.insert(0, _as_node("timestep/index", Weight.of(index)))
        first = helper.make_node(
            "Gather", ["timestep", "timestep/index"], ["timestep/first"], name="timestep/first", axis=0
        )
        nodes.insert(1, first)
        graph.replace_nodes(nodes)


def _check_whole(graph: Graph, name: str) -> None:
    """Refuse a graph that computes with whole timesteps: taken as floats, they must become floats before that."""
    reached = {"timestep"}
    for node in graph.nodes:
        if not node.input or node.input[0] not in reached or node.op_type == "Cast":
            if reached & set(node.input) and node.op_type not in ("Cast", "Shape"):
                raise BundleError(f"{name}: its graph computes with whole timesteps ({node.op_type} {node.name!r})")
            continue
        if node.op_type == "Shape":
            continue
        if node.op_type not in MOVES:
            raise BundleError(
                f"{name}: its graph computes with whole timesteps ({node.op_type} {node.name!r}); only "
                f"{choices(MOVES)} may come before they are cast"
            )
        reached |= set(node.output)


def _keep_tables(graph: Graph) -> None:
    """Tables that the timestep and the sizes are multiplied by, up to 1000, become constants, which stay in fp32."""
    reached = {"timestep", "time_ids"}
    tables: dict[str, Weight] = {}
    for node in graph.nodes:
        if node.op_type in ("MatMul", "Gemm", "Conv", "Sin", "Cos", "Shape") or not reached & set(node.input):
            continue
        reached |= set(node.output)
        if node.op_type in ("Mul", "Div", "Add", "Sub"):
            floats = {read: graph.weights[read] for read in node.input if read in graph.weights}
            tables |= {read: w for read, w in floats.items() if w.dtype == np.float32 and len(w.shape)}
    graph.replace_nodes([*(_as_node(table, weight) for table, weight in tables.items()), *graph.nodes])
    graph.weights = {key: weight for key, weight in graph.weights.items() if key not in tables}
