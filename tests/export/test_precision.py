"""What each precision does to a graph, and what keeps a model alive in fp16."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import edgediff
from edgediff.bundle.reading import read_bundle
from edgediff.verify import prove
from edgediff_export.convert import export
from edgediff_export.onnx_graph.attention import FusedAttention
from edgediff_export.onnx_graph.fused_node import FUSED, plain
from edgediff_export.onnx_graph.graph import Graph, read_graph, write_graph
from edgediff_export.precision import quantize
from edgediff_export.precision.fp16 import rounded, to_fp16
from edgediff_export.precision.precisions import PRECISIONS
from edgediff_export.precision.quantize import multiply_int8, store_fp16, store_int8
from edgediff_export.precision.sensitive_nodes import Probe, unfit_for_fp16, worst_nodes
from edgediff_export.precision.session import OpenGraph, open_session, run_graph
from edgediff_export.weight import Weight


def a_graph(nodes: list[onnx.NodeProto], inputs: dict[str, list[Any]], weights: dict[str, Any], output: str) -> Graph:
    values = [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in inputs.items()]
    made = helper.make_graph(nodes, "g", values, [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", "m"])])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return Graph(model, {k: Weight.of(np.asarray(v, np.float32)) for k, v in weights.items()})


@pytest.fixture
def small() -> tuple[Graph, dict[str, np.ndarray]]:
    """relu(x @ w + b) @ v, and an input."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Add", ["b", "a"], ["c"], name="bias"),
        helper.make_node("Relu", ["c"], ["d"], name="relu"),
        helper.make_node("MatMul", ["d", "v"], ["y"], name="second"),
    ]
    weights = {"w": rng.standard_normal((32, 48)), "b": rng.standard_normal(48), "v": rng.standard_normal((48, 8))}
    return a_graph(nodes, {"x": ["n", 32]}, weights, "y"), {"x": rng.standard_normal((5, 32)).astype(np.float32)}


def by_numpy(graph: Graph, x: np.ndarray, weight: Any = lambda w: w) -> np.ndarray:
    w, b, v = (graph.weights[k].read() for k in "wbv")
    return np.maximum(x @ weight(w) + b, 0) @ weight(v)


def test_store_fp16(small: tuple[Graph, dict[str, np.ndarray]], tmp_path: Path) -> None:
    graph, feed = small
    changed = graph.copy()
    assert store_fp16(changed, keep=["second"]) == 1  # b is too short to be worth a cast
    assert {k: w.dtype.name for k, w in changed.weights.items()} == {
        "w.fp16": "float16",
        "b": "float32",
        "v": "float32",
    }
    found = run_graph(changed, [feed])[0]["y"]
    w, b, v = (graph.weights[k].read() for k in "wbv")
    expected = np.maximum(feed["x"] @ w.astype(np.float16).astype(np.float32) + b, 0) @ v
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_store_fp16_keeps_what_fp16_cannot_hold() -> None:
    nodes = [helper.make_node("Mul", ["x", k], [k + "_out"], name=k) for k in ("a", "big")]
    nodes.append(helper.make_node("Add", ["a_out", "big_out"], ["y"], name="y"))
    graph = a_graph(nodes, {"x": [128]}, {"a": np.linspace(-2, 2, 128), "big": np.full(128, 1e5)}, "y")
    assert store_fp16(graph) == 1
    assert graph.weights["big"].dtype == np.float32


def test_large_fp16_weights_are_not_folded(
    small: tuple[Graph, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are inputs with a default: an engine may not widen them when it loads."""
    import onnxruntime

    monkeypatch.setattr("edgediff_export.precision.quantize.DATA_LIMIT", 100)
    graph, feed = small
    changed = graph.copy()
    store_fp16(changed)
    write_graph(changed, tmp_path / "m.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), options, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["x"]
    assert "Cast" in {n.op_type for n in onnx.load(str(tmp_path / "optimised.onnx")).graph.node}
    half = by_numpy(graph, feed["x"], lambda w: w.astype(np.float16).astype(np.float32))
    np.testing.assert_allclose(session.run(None, feed)[0], half, rtol=1e-5, atol=1e-4)


def quantised(w: np.ndarray) -> np.ndarray:
    scale = np.abs(w).max(axis=0) / 127
    return np.rint(w / scale) * scale


def test_store_int8(small: tuple[Graph, dict[str, np.ndarray]], tmp_path: Path) -> None:
    graph, feed = small
    changed = graph.copy()
    assert store_int8(changed) == 2
    assert sorted(k for k, w in changed.weights.items() if w.dtype == np.int8) == ["v.int8", "w.int8"]
    expected = by_numpy(graph, feed["x"], quantised)
    np.testing.assert_allclose(run_graph(changed, [feed])[0]["y"], expected, rtol=1e-5, atol=1e-4)
    assert np.abs(expected - by_numpy(graph, feed["x"])).max() > 1e-2


def test_store_int8_of_a_convolution_scales_each_output_channel(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((4, 3, 3, 3)).astype(np.float32) * np.float32([1e-3, 1, 10, 100])[:, None, None, None]
    graph = a_graph([helper.make_node("Conv", ["x", "w"], ["y"], name="c")], {"x": [1, 3, 9, 9]}, {"w": weight}, "y")
    feed = {"x": rng.standard_normal((1, 3, 9, 9)).astype(np.float32)}
    assert store_int8(graph) == 1
    expected = torch.nn.functional.conv2d(torch.from_numpy(feed["x"]), torch.from_numpy(weight)).numpy()
    found = run_graph(graph, [feed])[0]["y"]
    error = np.abs(found - expected).max(axis=(0, 2, 3)) / np.abs(expected).max(axis=(0, 2, 3))
    assert (error < 0.02).all()  # one scale for all would lose the first channel
    assert (error > 0).all()


def test_multiply_int8(small: tuple[Graph, dict[str, np.ndarray]], tmp_path: Path) -> None:
    graph, feed = small
    changed = graph.copy()
    assert multiply_int8(changed) == 2
    assert [n.op_type for n in changed.nodes] == ["DynamicQuantizeMatMul", "Relu", "DynamicQuantizeMatMul"]

    def dynamic(x: np.ndarray) -> np.ndarray:
        low, high = min(0.0, float(x.min())), max(0.0, float(x.max()))
        scale = (high - low) / 255
        zero = np.rint(-low / scale)
        return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale

    w, b, v = (graph.weights[k].read() for k in "wbv")
    expected = dynamic(np.maximum(dynamic(feed["x"]) @ quantised(w) + b, 0)) @ quantised(v)
    found = run_graph(changed, [feed])[0]["y"]
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 5e-3
    assert np.linalg.norm(found - by_numpy(graph, feed["x"])) / np.linalg.norm(expected) < 5e-2
    for kept in ("first", "bias"):  # by the node of the product, or of the sum that ends it
        assert multiply_int8(graph.copy(), keep=[kept]) == 1


def types(graph: Graph, tmp_path: Path) -> dict[str, int]:
    """Every tensor's type, as onnx infers it of the written file."""
    write_graph(graph, tmp_path / "typed.onnx")
    onnx.checker.check_model(str(tmp_path / "typed.onnx"))
    model = onnx.shape_inference.infer_shapes(onnx.load(str(tmp_path / "typed.onnx")))
    known = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    return {v.name: v.type.tensor_type.elem_type for v in known}


def test_to_half_and_rounded(small: tuple[Graph, dict[str, np.ndarray]], tmp_path: Path) -> None:
    graph, feed = small
    found = types(to_fp16(graph, keep=["relu"]), tmp_path)
    assert found["x"] == found["y"] == TensorProto.FLOAT
    assert found["a"] == found["c"] == TensorProto.FLOAT16
    assert found["d"] == TensorProto.FLOAT

    def half(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float16).astype(np.float32)

    w, b, v = (half(graph.weights[k].read()) for k in "wbv")
    expected = half(half(np.maximum(half(half(half(feed["x"]) @ w) + b), 0)) @ v)
    got = run_graph(rounded(graph, keep=["relu"]), [feed])[0]["y"]
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-3)
    assert np.array_equal(got, half(got))  # the output itself went through fp16
    assert not np.array_equal(run_graph(graph, [feed])[0]["y"], got)


def test_rounding_shows_an_overflow_and_where(small: tuple[Graph, dict[str, np.ndarray]], tmp_path: Path) -> None:
    graph, feed = small
    large = graph.weights["w"].read() * np.float32(1e5)
    graph.weights["w"] = Weight.of(large)
    assert not np.isfinite(run_graph(rounded(graph), [feed])[0]["y"]).all()
    reasons = unfit_for_fp16(graph, [feed])
    assert set(reasons) == {"first", "bias", "relu", "second"}
    assert reasons["first"].startswith(("values up to", "weights up to"))
    kept = run_graph(rounded(graph, keep=reasons), [feed])[0]["y"]
    np.testing.assert_allclose(kept, run_graph(graph, [feed])[0]["y"], rtol=1e-6)


def test_worst_nodes_names_the_one_that_loses(small: tuple[Graph, dict[str, np.ndarray]], tmp_path: Path) -> None:
    graph, feed = small
    other = graph.copy()
    other.weights["v"] = Weight.of(graph.weights["v"].read() + np.float32(0.3))
    assert list(worst_nodes(Probe(graph), other, feed)) == ["second"]


@pytest.mark.parametrize("large", [False, True])
def test_weights_of_a_file_are_run_where_they_lie(
    small: tuple[Graph, dict[str, np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    """Held in fp16, and with its axes the other way round, as a checkpoint holds a linear: nothing is changed by it."""
    graph, feed = small
    expected = run_graph(graph, [feed])[0]["y"]
    monkeypatch.setattr(quantize, "DATA_LIMIT", 0 if large else 1 << 30)
    for name in "wv":
        held = tmp_path / name
        held.write_bytes(np.ascontiguousarray(graph.weights[name].read().T).astype(np.float16).tobytes())
        shape = graph.weights[name].shape[::-1]
        mapped = partial(np.memmap, held, np.float16, "r", 0, shape)
        graph.weights[name] = Weight.in_file(shape, mapped).transposed
    in_fp16 = run_graph(graph, [feed])[0]["y"]
    np.testing.assert_allclose(in_fp16, expected, rtol=5e-2, atol=5e-3)
    stored = graph.copy()
    assert store_fp16(stored) == 2
    assert (len(stored.model.graph.input) == 3) == large
    for opened in (OpenGraph(stored), OpenGraph(stored, exact=True)):
        np.testing.assert_allclose(opened.run(feed)["y"], in_fp16, rtol=1e-6)
    write_graph(stored, tmp_path / "y.onnx")
    shipped = open_session(tmp_path / "y.onnx").run(["y"], feed)[0]
    np.testing.assert_allclose(shipped, in_fp16, rtol=1e-5)


def test_constants_of_the_graph_are_not_rounded(small: tuple[Graph, dict[str, np.ndarray]]) -> None:
    """No file holds them; what a sinusoid is taken of is left alone in any graph."""
    graph, _ = small
    graph.weights["w"] = replace(graph.weights["w"], constant=True)
    assert store_fp16(graph.copy()) == 1
    assert store_int8(graph.copy()) == 1
    nodes = [helper.make_node("Mul", ["t", "table"], ["angle"]), helper.make_node("Sin", ["angle"], ["y"])]
    sinusoids = a_graph(nodes, {"t": ["n", 1]}, {"table": np.linspace(0, 1, 160)[None]}, "y")
    assert store_fp16(sinusoids) == 0


@pytest.mark.parametrize("tokens", [7, 64])
def test_plain_attention_is_the_fused(tiny_bundle: Path, tmp_path: Path, tokens: int) -> None:
    graph = read_graph(tiny_bundle / "unet.onnx")
    written = plain(graph)
    fused = [n for n in graph.nodes if n.op_type == FUSED]
    assert len(fused) == 8  # self and cross attention of four blocks
    assert FUSED not in {n.op_type for n in written.nodes}
    assert [o.domain for o in written.model.opset_import] == [""]
    rng = np.random.default_rng(0)
    feed = {
        "sample": rng.standard_normal((3, 4, 8, 12)).astype(np.float32),
        "timestep": np.float32([1, 500, 999]),
        "encoder_hidden_states": rng.standard_normal((3, tokens, 32)).astype(np.float32),
    }
    a, b = (run_graph(g, [feed])[0]["out_sample"] for g in (graph, written))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_fused_attention_is_diffusers(tiny_source: Path) -> None:
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    model = UNet2DConditionModel.from_pretrained(tiny_source / "unet").eval()
    inputs = (torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), torch.randn(2, 9, 32))
    outputs = []
    with torch.no_grad():
        for processor in (AttnProcessor(), FusedAttention()):
            model.set_attn_processor(processor)
            outputs.append(model(*inputs).sample)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def wide_bundle(wide_source: Path) -> Path:
    return export(wide_source, wide_source.parent / "bundle", precision="fp32")


@pytest.mark.parametrize("precision", ["fp16", "fp16-weights", "int8", "int8-dynamic"])
def test_bundles(wide_source: Path, wide_bundle: Path, tmp_path: Path, precision: str) -> None:
    """Every precision exports, draws, and proves itself again from what is stored in it."""
    out = export(wide_source, tmp_path / "out", precision=precision)
    bundle = read_bundle(out)
    how = PRECISIONS[precision]
    for part in bundle.parts:
        facts = bundle.parity[part]
        assert facts["precision"] == precision
        assert facts["relative"] <= facts["ceiling"] == how.ceiling
    assert min(bundle.parity["pictures"]["psnr"]) >= how.floor
    assert bundle.parity["unet"]["relative"] > 0
    size, whole = (sum(f.size for n, f in read_bundle(r).files() if n == "unet") for r in (out, wide_bundle))
    assert size < {"fp16": 0.9, "fp16-weights": 0.7, "int8": 0.6, "int8-dynamic": 0.9}[precision] * whole
    pipe = edgediff.load(out, threads=1)
    findings = list(prove(pipe))
    assert [f.what for f in findings] == [*bundle.parts, "picture 1", "picture 2"]
    assert all(f.ok for f in findings)
    assert np.isfinite(pipe("a cat", seed=0, num_inference_steps=2, output_type="latent").latents).all()


def test_precision_by_part(tiny_source: Path, tmp_path: Path) -> None:
    out = export(tiny_source, tmp_path / "out", precision="int8", part_precision={"vae_decoder": "fp32"})
    bundle = read_bundle(out)
    assert [p.files[0].precision for p in bundle.parts.values()] == ["int8", "int8", "fp32", "int8"]
    with pytest.raises(edgediff.ArgumentError, match=r"no part 'vae' in .*; choose from text_encoder, unet"):
        export(tiny_source, tmp_path / "b", part_precision={"vae": "fp32"})


@pytest.fixture
def overflowing(tiny_source: Path, tmp_path: Path) -> Path:
    """The tiny model with a convolution whose output the next norm brings back, out of fp16's range in between."""
    from safetensors.torch import load_file, save_file

    source = Path(shutil.copytree(tiny_source, tmp_path / "source"))
    path = source / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["down_blocks.1.resnets.0.conv1.weight"] *= 3e6
    weights["down_blocks.1.resnets.0.conv1.bias"] *= 3e6
    save_file(weights, path, {"format": "pt"})
    return source


def test_overflow_is_rescued(overflowing: Path, tmp_path: Path) -> None:
    out = export(overflowing, tmp_path / "out", precision="fp16")
    bundle = read_bundle(out)
    kept = bundle.parity["unet"]["kept_fp32"]
    conv = "/model/down_blocks.1/resnets.0/conv1/Conv"
    assert conv in kept
    assert all("/model/down_blocks.1/resnets.0/" in node for node in kept)
    graph = read_graph(out / "unet.onnx")
    assert len(kept) < 0.05 * len(graph.nodes)
    assert "kept_fp32" not in bundle.parity["vae_decoder"]
    assert min(bundle.parity["pictures"]["psnr"]) >= PRECISIONS["fp16"].floor
    # Without the rescue the same graph breaks, and the shipped one has the right types.
    fp32 = read_graph(export(overflowing, tmp_path / "fp32", precision="fp32") / "unet.onnx")
    rng = np.random.default_rng(0)
    feed = {
        "sample": rng.standard_normal((1, 4, 8, 8)).astype(np.float32),
        "timestep": np.float32([500]),
        "encoder_hidden_states": rng.standard_normal((1, 77, 32)).astype(np.float32),
    }
    assert not np.isfinite(run_graph(rounded(fp32), [feed])[0]["out_sample"]).all()
    found = types(read_graph(out / "unet.plain.onnx"), tmp_path)
    by_name = {n.name: n.output[0] for n in read_graph(out / "unet.plain.onnx").nodes}
    assert found[by_name[conv]] == TensorProto.FLOAT
    other = next(v for k, v in by_name.items() if k == "/model/down_blocks.0/resnets.0/conv1/Conv")
    assert found[other] == TensorProto.FLOAT16


def test_below_the_floor_names_nodes(tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    monkeypatch.setitem(PRECISIONS, "int8", dataclasses.replace(PRECISIONS["int8"], floor=98.0))
    with pytest.raises(
        edgediff.EngineError, match=r"below the floor of 98 dB; the U-Net's worst nodes: /model/.* adds"
    ):
        export(tiny_source, tmp_path / "out", precision="int8")
    assert list(tmp_path.iterdir()) == []


def test_golden_tensors_that_were_changed(tiny_bundle: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(tiny_bundle, tmp_path / "changed"))
    manifest = json.loads((root / "bundle.json").read_text(encoding="utf-8"))
    manifest["parity"]["unet"]["ceiling"] = 1e-12
    manifest["golden"]["floor"] = 98.9
    (root / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert [f.what for f in prove(edgediff.load(root, threads=1)) if not f.ok][:1] == ["unet"]
    (root / "golden.safetensors").unlink()
    with pytest.raises(edgediff.BundleNotFoundError, match=r"golden needs golden\.safetensors"):
        list(prove(edgediff.load(root)))
