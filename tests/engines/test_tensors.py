"""Graphs and engines that give something else than the manifest says: refused by name, and never drawn."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgediff
from edgediff.device.host import HostDevice
from edgediff.engines.tensors import check_session, forms, run_part
from edgediff.errors import BundleError, EngineError
from edgediff.pipeline import Pipeline

onnx = pytest.importorskip("onnx", reason="onnx, which builds the graphs, is not installed (extra dev)")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from ..support.hostile import forged, graph, inputs_of, same_as  # noqa: E402

PICTURE = ["batch", 3, "height", "width"]
STATE = ["batch", 4, "latent_height", "latent_width"]
CALL: dict[str, Any] = {"prompt": "a cat", "seed": 1, "num_inference_steps": 1, "guidance_scale": 1.0}


def enlarged(kind: int, shape: Any) -> tuple[list[Any], list[Any], list[Any]]:
    """A decoder's nodes, outputs and weights: the first three channels, enlarged, in a type of its own."""
    nodes = [
        helper.make_node("Slice", ["latent_sample", "zero", "three", "axis"], ["rgb"]),
        helper.make_node("Resize", ["rgb", "", "scales"], ["large"], mode="nearest"),
        helper.make_node("Cast", ["large"], ["sample"], to=kind),
    ]
    weights = [
        numpy_helper.from_array(np.array([v]), k) for k, v in (("zero", 0), ("one", 1), ("three", 3), ("axis", 1))
    ]
    weights.append(numpy_helper.from_array(np.array([1, 1, 4, 4], np.float32), "scales"))
    return nodes, [helper.make_tensor_value_info("sample", kind, shape)], weights


@pytest.mark.parametrize(
    ("kind", "shape", "said"),
    [
        (TensorProto.INT8, PICTURE, "int8[batch, 3, height, width]"),
        (TensorProto.BOOL, PICTURE, "bool[batch, 3, height, width]"),
        (TensorProto.DOUBLE, PICTURE, "float64[batch, 3, height, width]"),
        (TensorProto.FLOAT16, PICTURE, "float16[batch, 3, height, width]"),
        (TensorProto.FLOAT, ["batch", 1, "height", "width"], "float32[batch, 1, height, width]"),
    ],
)
def test_another_type_or_size_is_refused_when_the_part_opens(
    tiny_bundle: Path, tmp_path: Path, kind: int, shape: Any, said: str
) -> None:
    nodes, outputs, weights = enlarged(kind, shape)
    if shape[1] == 1:
        nodes[0].input[2] = "one"  # the first channel alone
    model = graph(inputs_of(tiny_bundle, "vae_decoder"), nodes, outputs, weights)
    pipe = edgediff.load(forged(tiny_bundle, tmp_path / "b", "vae_decoder", model), threads=1)
    wanted = r"vae_decoder: vae_decoder\.onnx has output sample of type "
    with pytest.raises(BundleError, match=wanted + re.escape(said) + ", the manifest says float32"):
        pipe.engine("vae_decoder")


@pytest.mark.parametrize("kind", ["string", "sequence", "rank", "input"])
def test_what_is_no_picture_is_refused_when_the_part_opens(tiny_bundle: Path, tmp_path: Path, kind: str) -> None:
    inputs = inputs_of(tiny_bundle, "vae_decoder")
    weights: list[Any] = []
    if kind == "string":
        weights = [helper.make_tensor("text", TensorProto.STRING, [1], [b"red"])]
        node = helper.make_node("Identity", ["text"], ["sample"])
        output, said = (
            helper.make_tensor_value_info("sample", TensorProto.STRING, [1]),
            r"output sample of type .*string",
        )
    elif kind == "sequence":
        node = helper.make_node("SequenceConstruct", ["latent_sample"], ["sample"])
        output = helper.make_tensor_sequence_value_info("sample", TensorProto.FLOAT, None)
        said = r"output sample of type seq\(tensor\(float\)\)"
    elif kind == "rank":
        node = helper.make_node("ReduceMean", ["latent_sample"], ["sample"], axes=[1], keepdims=0)
        output = helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["batch", "height", "width"])
        said = r"output sample of type float32\[batch, .*\], the manifest says float32\[batch, 3, height, width\]"
    else:
        inputs = [helper.make_tensor_value_info("latent_sample", TensorProto.FLOAT16, STATE)]
        node, output = same_as("sample", "latent_sample", shape=PICTURE)
        said = (
            r"input latent_sample of type float16\[batch, 4, latent_height, latent_width\], the manifest says float32"
        )
    model = graph(inputs, [node], [output], weights)
    pipe = edgediff.load(forged(tiny_bundle, tmp_path / "b", "vae_decoder", model), threads=1)
    with pytest.raises(BundleError, match=rf"vae_decoder: vae_decoder\.onnx has {said}"):
        pipe(**CALL)


def test_a_manifest_that_agrees_does_not_make_whole_numbers_a_picture(tiny_bundle: Path, tmp_path: Path) -> None:
    nodes, outputs, weights = enlarged(TensorProto.INT64, PICTURE)

    def agree(entry: Any) -> None:
        entry["outputs"][0]["dtype"] = "int64"

    model = graph(inputs_of(tiny_bundle, "vae_decoder"), nodes, outputs, weights)
    bundle = forged(tiny_bundle, tmp_path / "b", "vae_decoder", model, agree)
    with pytest.raises(BundleError, match=r"gives sample as int64; choose from float32, float16"):
        edgediff.load(bundle, threads=1)(**CALL)


@pytest.mark.parametrize("axis", [0, 2])
def test_another_batch_or_size_behind_symbols_is_an_error_of_the_part(
    tiny_bundle: Path, tmp_path: Path, axis: int
) -> None:
    """Types and ranks agree, sizes have names: only a call shows what comes."""
    node = helper.make_node("Concat", ["sample", "sample"], ["out_sample"], axis=axis)
    output = helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, ["b", 4, "h", "w"])
    model = graph(inputs_of(tiny_bundle, "unet"), [node], [output])
    pipe = edgediff.load(forged(tiny_bundle, tmp_path / "b", "unet", model), threads=1)
    got = {0: r"2, 4, 8, 8", 2: r"1, 4, 16, 8"}[axis]
    with pytest.raises(
        EngineError, match=rf"unet gave float32\[{got}\] as out_sample; it must be float32\[1, 4, 8, 8\]"
    ):
        pipe(**CALL)


def test_a_rank_that_the_file_does_not_tell_is_left_to_the_call(tiny_bundle: Path, tmp_path: Path) -> None:
    """A reshape by a shape that is computed has no rank before it runs."""
    nodes = [
        helper.make_node("Shape", ["encoder_hidden_states"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("NonZero", ["zeros"], ["places"]),
        helper.make_node("Shape", ["places"], ["form"]),
        helper.make_node("ConstantOfShape", ["form"], ["out_sample"]),
    ]
    model = graph(
        inputs_of(tiny_bundle, "unet"), nodes, [helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, None)]
    )
    pipe = edgediff.load(forged(tiny_bundle, tmp_path / "b", "unet", model), threads=1)
    with pytest.raises((BundleError, EngineError), match=r"out_sample"):
        pipe(**CALL)


class Given:
    """A part whose engine gives what a function makes of the true engine's answer."""

    def __init__(self, engine: Any, change: Callable[[Any], Any]) -> None:
        self.engine, self.change = engine, change
        self.inputs, self.outputs = engine.inputs, engine.outputs

    def __call__(self, **inputs: Any) -> Any:
        return self.change(self.engine(**inputs))


def every(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda out: {name: change(values) for name, values in out.items()}


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae_decoder"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (every(lambda v: v > 0), r"gave bool\[1, .*\] as \w+; it must be float32\[1, "),
        (every(lambda v: v.astype(np.int8)), r"gave int8\[1, .*\] as \w+; it must be float32\[1, "),
        (every(lambda v: v.astype(">f4")), r"gave (>f4|float32)\[1, .*\] as \w+; it must be float32\[1, "),
        (every(lambda v: np.concatenate([v, v])), r"gave float32\[2, .*\] as \w+; it must be float32\[1, "),
        (every(lambda v: v[0]), r"gave float32\[.*\] as \w+; it must be float32\[1, "),
        (every(lambda v: v.tolist()), r"gave list as \w+; it must be float32\[1, "),
        (every(lambda v: v.astype(str)), r"gave <U\d+\[1, .*\] as \w+; it must be float32"),
        (every(lambda v: v.astype(object)), r"gave object\[1, .*\] as \w+; it must be float32"),
        (lambda out: list(out.values()), r"gave list; it must give arrays by name: "),
        (lambda out: {}, r"gave nothing as \w+; it must be float32\[1, "),
    ],
)
def test_what_an_engine_of_the_users_gives(
    tiny_bundle: Path, part: str, change: Callable[[Any], Any], said: str
) -> None:
    pipe = edgediff.load(tiny_bundle, threads=1)
    pipe.set_engine(part, Given(pipe.engine(part), change))
    with pytest.raises(EngineError, match=rf"^{part} {said}"):
        pipe(**CALL)


def test_a_state_that_this_call_reads_is_missed(tiny_bundle: Path) -> None:
    pipe = edgediff.load(tiny_bundle, threads=1)
    last = Given(pipe.engine("text_encoder"), lambda out: {"last_hidden_state": out["last_hidden_state"]})
    pipe.set_engine("text_encoder", last)
    assert pipe(**CALL).images  # which reads no other
    with pytest.raises(EngineError, match=r"text_encoder gave last_hidden_state; this call reads hidden_state_1"):
        pipe(**CALL, clip_skip=1)


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae_decoder"])
@pytest.mark.parametrize(("raised", "said"), [(MemoryError, "memory"), (RecursionError, "Python's stack")])
def test_an_engine_that_ends_memory_is_named(tiny_bundle: Path, part: str, raised: type[Exception], said: str) -> None:
    pipe = edgediff.load(tiny_bundle, threads=1)

    def fail(out: Any) -> Any:
        raise raised

    pipe.set_engine(part, Given(pipe.engine(part), fail))
    with pytest.raises(EngineError, match=rf"^{part}: {said} ran out in its engine, on \w+ \w+\[1, "):
        pipe(**CALL)


def test_true_parts_are_of_their_forms(tiny_bundle: Path) -> None:
    """The forms that are wanted are those that the exporter's own graphs give, of every part."""
    pipe = edgediff.load(tiny_bundle, threads=1)
    z, x = np.zeros((2, 4, 6, 8), np.float32), np.zeros((2, 3, 24, 32), np.float32)
    text = np.zeros((2, 77, 32), np.float32)
    calls: dict[str, dict[str, Any]] = {
        "text_encoder": {"input_ids": np.zeros((2, 77), np.int64), "extra_embeddings": np.zeros((1, 32), np.float32)},
        "unet": {"sample": z, "timestep": np.ones(2, np.float32), "encoder_hidden_states": text},
        "vae_decoder": {"latent_sample": z},
        "vae_encoder": {"sample": x},
    }
    assert set(calls) == set(pipe.bundle.parts)
    for part, inputs in calls.items():
        wanted = forms(pipe.bundle, part, {name: values.shape for name, values in inputs.items()})
        out = run_part(part, pipe.engine(part), inputs, wanted)
        assert set(out) == set(wanted)


def test_symbols_and_unknown_ranks_are_let_through() -> None:
    from edgediff.bundle.manifest import Part, Tensor

    class Own:
        name, type = "latent_mean", "tensor(float)"

        def __init__(self, shape: list[Any]) -> None:
            self.shape = shape

    part = Part((), (), (Tensor("latent_mean", "float32", ("batch", 4, "h", "w")),))
    for shape in (["batch", "Slicelatent_mean_dim_1", None, 8], [], ["b", 4, "h", "w"]):
        check_session("vae_encoder", "f.onnx", part, [], [Own(shape)])
    with pytest.raises(
        BundleError, match=r"of type float32\[b, 5, h, \?\], the manifest says float32\[batch, 4, h, w\]"
    ):
        check_session("vae_encoder", "f.onnx", part, [], [Own(["b", 5, "h", None])])


@pytest.mark.parametrize("axis", [0, 2])
def test_another_batch_or_size_on_a_device(tiny_bundle: Path, tmp_path: Path, axis: int) -> None:
    """There outputs are buffers of fixed size, which the engine refuses to fill otherwise."""
    pytest.importorskip("edgediff_kernels", reason="edgediff-kernels is not installed")
    node = helper.make_node("Concat", ["sample", "sample"], ["out_sample"], axis=axis)
    output = helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, ["b", 4, "h", "w"])
    model = graph(inputs_of(tiny_bundle, "unet"), [node], [output])
    bundle = edgediff.load(forged(tiny_bundle, tmp_path / "b", "unet", model)).bundle
    with pytest.raises(EngineError, match="unet failed on sample float32"):
        Pipeline(bundle, device=HostDevice())(**CALL)
