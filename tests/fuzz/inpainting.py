"""An inpainting model of toy width: the stored bundle, whose U-Net looks at mask and masked picture, too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .bundles import DATA, sign

CHANNELS = 9  # latents, mask, masked latents


def make_inpainting(out: Path) -> Path:
    """Write the stored bundle with a U-Net of 9 channels: the noise that it finds is moved by the mask and the masked
    latents, so that a picture depends on both.
    """
    shutil.copytree(DATA / "tiny", out)
    model = onnx.load(str(out / "unet.onnx"))
    graph = model.graph
    for node in graph.node:
        for k, name in enumerate(node.input):
            if name == "sample":
                node.input[k] = "sample_latents"
        for k, name in enumerate(node.output):
            if name == "out_sample":
                node.output[k] = "out_latents"
    for name, value in {"cut0": [0], "cut4": [4], "cut5": [5], "cut9": [9], "axis1": [1]}.items():
        graph.initializer.append(numpy_helper.from_array(np.array(value, np.int64), name))
    graph.initializer.append(numpy_helper.from_array(np.array(0.1, np.float32), "tenth"))
    first = [
        helper.make_node("Slice", ["sample", "cut0", "cut4", "axis1"], ["sample_latents"]),
        helper.make_node("Slice", ["sample", "cut4", "cut5", "axis1"], ["sample_mask"]),
        helper.make_node("Slice", ["sample", "cut5", "cut9", "axis1"], ["sample_masked"]),
        helper.make_node("Add", ["sample_mask", "sample_masked"], ["sample_both"]),
        helper.make_node("Mul", ["sample_both", "tenth"], ["sample_moved"]),
    ]
    nodes = [*first, *graph.node, helper.make_node("Add", ["out_latents", "sample_moved"], ["out_sample"])]
    del graph.node[:]
    graph.node.extend(nodes)
    next(t for t in graph.input if t.name == "sample").type.tensor_type.shape.dim[1].dim_value = CHANNELS
    onnx.save(model, str(out / "unet.onnx"))
    data = json.loads((out / "bundle.json").read_bytes())
    next(t for t in data["parts"]["unet"]["inputs"] if t["name"] == "sample")["shape"][1] = CHANNELS
    del data["golden"]
    (out / "bundle.json").write_text(json.dumps(data), encoding="utf-8")
    sign(out, "unet.onnx")
    return out
