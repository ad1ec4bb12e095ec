"""Graphs of a bundle take the inputs, outputs and names of sizes that optimum's have."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, ValueInfoProto, helper

from ..onnx_graph.graph import Graph
from ..weight import Weight

Size = int | str


def unet_graph(graph: Graph, sizes: dict[str, list[Size]]) -> Graph:
    """One timestep, a number, goes in for all images.

    Args:
        graph: of a bundle's U-Net.
        sizes: of its inputs, by name, as the bundle lists them.
    """
    out = graph.copy()
    out.weights["/timestep/start"] = Weight.of(np.array([0], np.int64), constant=True)
    out.weights["/timestep/end"] = Weight.of(np.array([1], np.int64), constant=True)
    nodes = out.nodes
    for node in nodes:
        for k, read in enumerate(node.input):
            node.input[k] = "/timestep/all" if read == "timestep" else read
    spread = [
        ("Unsqueeze", ["timestep", "/timestep/start"], "/timestep/one"),
        ("Shape", ["sample"], "/timestep/shape"),
        ("Slice", ["/timestep/shape", "/timestep/start", "/timestep/end"], "/timestep/batch"),
        ("Expand", ["/timestep/one", "/timestep/batch"], "/timestep/all"),
    ]
    made = [helper.make_node(kind, inputs, [output], name=output) for kind, inputs, output in spread]
    out.replace_nodes([*made, *nodes])
    names = {"batch": "batch_size", "latent_height": "height", "latent_width": "width", "tokens": "sequence_length"}
    inputs = {name: [names.get(str(s), s) for s in shape] for name, shape in sizes.items()} | {"timestep": []}
    channels = next(o for o in out.model.graph.output).type.tensor_type.shape.dim[1]
    given: list[Size] = ["batch_size", channels.dim_value or channels.dim_param, "height", "width"]
    _declare(out, inputs, {"out_sample": given})
    return out


def decoder_graph(graph: Graph, channels: int, factor: int) -> Graph:
    """The decoder's sizes are told by those of its latents, so that buffers can be made before a call."""
    out = graph.copy()
    taken: list[Size] = ["batch_size", channels, "latent_height", "latent_width"]
    given: list[Size] = ["batch_size", 3, f"latent_height * {factor}", f"latent_width * {factor}"]
    _declare(out, {"latent_sample": taken}, {"sample": given})
    return out


def encoder_graph(graph: Graph, channels: int, factor: int) -> Graph:
    """Mean and log variance lie in one tensor; an encoder without a variance gives latents."""
    out = graph.copy()
    taken: list[Size] = ["batch_size", 3, "sample_height", "sample_width"]
    sides: list[Size] = [f"sample_height / {factor}", f"sample_width / {factor}"]
    if len(out.model.graph.output) == 2:
        inputs = ["latent_mean", "latent_logvar"]
        joined = helper.make_node("Concat", inputs, ["latent_parameters"], name="latent_parameters", axis=1)
        name, count = "latent_parameters", 2 * channels
    else:
        joined = helper.make_node("Identity", ["latent_mean"], ["latent_sample"], name="latent_sample")
        name, count = "latent_sample", channels
    out.replace_nodes([*out.nodes, joined])
    _declare(out, {"sample": taken}, {name: ["batch_size", count, *sides]})
    return out


def _declare(graph: Graph, inputs: dict[str, list[Size]], outputs: dict[str, list[Size]]) -> None:
    """Say what the graph takes and gives, in float32; inputs that are weights with a default stay."""
    defaults = [value for value in graph.model.graph.input if value.name in graph.weights]
    for values, wanted in ((graph.model.graph.input, inputs), (graph.model.graph.output, outputs)):
        del values[:]
        values.extend(_value(name, shape) for name, shape in wanted.items())
    graph.model.graph.input.extend(defaults)


def _value(name: str, shape: list[Size]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
