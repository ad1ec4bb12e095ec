"""Folders of other exporters draw the pictures that torch drew, whatever types, batches and sizes their graphs take."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="onnx, which writes the graphs, is not installed (extra test)")

import edgediff
from edgediff import ArgumentError, BundleError, EngineError
from edgediff.bundle.golden import cases_of, read_golden
from edgediff.bundle.reading import read_bundle
from edgediff.compare import psnr
from edgediff.engines.operators import GPU_ONLY, cpu_kernels, why_no_kernel
from edgediff.engines.providers import CPU, CUDA
from edgediff.engines.session import import_onnxruntime

from ..support import foreign
from ..support.foreign import edit_model, make_foreign
from ..support.host_device import CountingDevice

Folder = Callable[[], Path]


@pytest.fixture(scope="module")
def made(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_foreign(tiny_bundle, tmp_path_factory.mktemp("foreign") / "tiny")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Folder:
    """A fresh copy, to change."""
    return lambda: Path(shutil.copytree(made, tmp_path / "tiny"))


@pytest.fixture(scope="module")
def torchs(tiny_bundle: Path) -> list[tuple[dict[str, Any], Any]]:
    """The calls whose pictures torch drew at export, and those pictures."""
    bundle = read_bundle(tiny_bundle)
    assert bundle.golden is not None
    tensors = read_golden(bundle, bundle.golden)
    return [(dict(call), tensors[f"picture.{k}"]) for k, call in enumerate(bundle.golden.pictures)]


def nearest(root: Path, torchs: list[tuple[dict[str, Any], Any]]) -> float:
    """The least PSNR of a folder's pictures to torch's, in dB."""
    pipe = edgediff.load(root)
    return min(psnr(pipe(**call, output_type="np").array[0], picture) for call, picture in torchs)


def test_draws_what_torch_drew(made: Path, torchs: Any) -> None:
    assert nearest(made, torchs) > 60


def test_every_part_answers_what_torch_answered(made: Path, tiny_bundle: Path) -> None:
    """On the golden inputs, but for further words and for several timesteps at once, which the graphs do not take."""
    source, pipe = read_bundle(tiny_bundle), edgediff.load(made)
    assert source.golden is not None
    tensors = read_golden(source, source.golden)
    compared = set()
    for part in source.parts:
        for case in cases_of(part, tensors).values():
            inputs = {name: values for name, values in case["in"].items() if name != "extra_embeddings"}
            if (inputs.get("input_ids", np.zeros(1)) < 0).any() or len(set(inputs.get("timestep", [0]))) > 1:
                continue
            found = pipe.engine(part)(**inputs)
            for name, wanted in case["out"].items():
                if name in found:
                    np.testing.assert_allclose(found[name], wanted, atol=1e-4)
                    compared.add((part, name))
    assert compared == {
        *(("text_encoder", "last_hidden_state"), ("unet", "out_sample"), ("vae_decoder", "sample")),
        *(("vae_encoder", "latent_mean"), ("vae_encoder", "latent_logvar")),
    }


def rank_one(kind: str) -> foreign.Edit:
    return lambda model: foreign.scalar_timestep(model, kind, (1,))


TRAPS: dict[str, tuple[str, foreign.Edit, float]] = {
    "timestep of rank 1": ("unet", rank_one("float32"), 60),
    "timestep int64": ("unet", lambda m: foreign.scalar_timestep(m, "int64"), 60),
    "timestep int32, rank 1": ("unet", rank_one("int32"), 60),
    "timestep float16": ("unet", lambda m: foreign.scalar_timestep(m, "float16"), 60),
    "timesteps one an image": ("unet", lambda m: foreign.scalar_timestep(m, "float32", ("steps",)), 60),
    "ids int32": ("text_encoder", foreign.narrow_ids, 60),
    "unet fp16": ("unet", foreign.half_io, 30),
    "decoder fp16": ("vae_decoder", foreign.half_io, 45),
    "text encoder fp16": ("text_encoder", foreign.half_io, 30),
    "unet batch 1": ("unet", foreign.fix_sizes(1), 60),
    "unet batch 3": ("unet", foreign.fix_sizes(3), 60),
    "unet of one size": ("unet", foreign.fix_sizes(2, None, 8, 8), 60),
    "decoder batch 4": ("vae_decoder", foreign.fix_sizes(4), 60),
    "text encoder batch 1": ("text_encoder", foreign.fix_sizes(1), 60),
}


@pytest.mark.parametrize("name", TRAPS)
def test_adapts(name: str, folder: Folder, torchs: Any) -> None:
    part, edit, floor = TRAPS[name]
    assert nearest(edit_model(folder(), part, edit), torchs[:1]) > floor


def test_configs_tell_the_widths_that_graphs_leave_open(folder: Folder, torchs: Any) -> None:
    root = folder()
    for part in ("text_encoder", "unet", "vae_decoder", "vae_encoder"):
        edit_model(root, part, foreign.open_widths)
    bundle = read_bundle(root)
    assert [t.shape[1] for t in bundle.parts["unet"].outputs] == [4]
    assert [t.shape[-1] for t in bundle.parts["text_encoder"].outputs] == [32]
    assert nearest(root, torchs[:1]) > 60


def test_a_batch_equals_its_images_where_the_graph_takes_a_fixed_batch(folder: Folder) -> None:
    pipe = edgediff.load(edit_model(folder(), "unet", foreign.fix_sizes(3)))
    call: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
    batch = pipe(["a tiger", "a fish"], seed=3, **call).latents
    for k, prompt in enumerate(["a tiger", "a fish"]):
        np.testing.assert_allclose(batch[k], pipe(prompt, seed=3 + k, **call).latents[0], atol=1e-5)


def test_streams_previews_and_weighs_as_bundles_do(made: Path, tiny_bundle: Path) -> None:
    call: dict[str, Any] = {"num_inference_steps": 3, "seed": 5, "sampler": "DPM++ 2M Karras", "guidance_rescale": 0.5}
    prompt = "(a red:1.4) apple BREAK on a table, " + "a word, " * 90
    ours = [step.x0 for step in edgediff.load(tiny_bundle).stream(prompt, **call)]
    theirs = [step.x0 for step in edgediff.load(made).stream(prompt, **call)]
    assert len(ours) == len(theirs) == 3
    np.testing.assert_allclose(theirs, ours, atol=2e-4)
    step = next(iter(edgediff.load(made).stream("a tiger", **call)))
    assert step.decode()[0].size == (32, 32)
    with pytest.raises(ArgumentError, match=r"has no preview matrix; use step\.decode\(\)"):
        step.preview()


def test_on_a_device_the_loop_stays_on_the_host(made: Path) -> None:
    call: dict[str, Any] = {"num_inference_steps": 3, "seed": 5, "output_type": "latent"}
    device = CountingDevice()
    with edgediff.Pipeline(read_bundle(made), device=device) as pipe:
        np.testing.assert_array_equal(pipe("a tiger", **call).latents, edgediff.load(made)("a tiger", **call).latents)
    assert device.calls["upload"] == 0


def test_what_a_graph_cannot_do_is_refused_before_any_work(folder: Folder, tmp_path: Path) -> None:
    root = folder()
    pipe = edgediff.load(root)
    with pytest.raises(ArgumentError, match=r"clip_skip is 1; .* offers 0 \(its graph, another exporter's, gives no"):
        pipe("a tiger", clip_skip=1)
    from safetensors.numpy import save_file

    save_file({"emb_params": np.zeros((1, 32), np.float32)}, tmp_path / "word.safetensors")
    with pytest.raises(BundleError, match="no input extra_embeddings; export its source with edgediff export"):
        pipe.load_textual_inversion(tmp_path / "word.safetensors")
    whole = edgediff.load(edit_model(root, "unet", lambda m: foreign.scalar_timestep(m, "int64")))
    with pytest.raises(ArgumentError, match=r"call 2 of this plan is at timestep \d+\.\d+; .* takes whole timesteps"):
        whole("a tiger", sampler="dpm2", num_inference_steps=6)


def test_a_size_that_the_graph_is_not_made_for(folder: Folder) -> None:
    root = edit_model(folder(), "unet", foreign.fix_sizes(None, None, 8, 16))
    bundle = read_bundle(root)
    assert (bundle.defaults.width, bundle.defaults.height) == (64, 32)
    with pytest.raises(ArgumentError, match=r"width is 32; the U-Net of bundle 'tiny' takes 64 alone"):
        edgediff.load(root)("a tiger", width=32, height=32)


@pytest.mark.parametrize(
    ("operator", "domain", "said"),
    [
        ("NhwcConv", "com.microsoft", r"unet cannot run here: its graph holds com\.microsoft\.NhwcConv, for which ONNX "
         r"Runtime [\d.]+ has no kernel on a CPU; it is made for CUDAExecutionProvider"),
        ("Paint", "com.example", r"unet cannot run here: its graph holds com\.example\.Paint, of a library that ONNX "
         "Runtime does not have"),
    ],
)  # fmt: skip
def test_operators_without_a_kernel_are_named_by_load(operator: str, domain: str, said: str, folder: Folder) -> None:
    root = edit_model(folder(), "unet", foreign.custom_operator(operator, domain))
    with pytest.raises(EngineError, match=said):
        edgediff.load(root)


def test_operators_that_have_a_kernel_run(folder: Folder, torchs: Any) -> None:
    """ONNX Runtime's own operators are in the stored graphs: attention as one node."""
    root = folder()
    assert ("com.microsoft", "MultiHeadAttention") in read_bundle(root).foreign.parts["unet"].header.custom  # type: ignore[union-attr]
    assert nearest(edit_model(root, "unet", foreign.custom_operator("FusedConv")), torchs) > 60


def test_operators_that_are_said_to_be_for_gpus_have_no_kernel_on_a_cpu(folder: Folder) -> None:
    ort = import_onnxruntime()
    assert "MultiHeadAttention" in cpu_kernels(ort)
    assert not set(GPU_ONLY) & cpu_kernels(ort)
    root = edit_model(folder(), "unet", foreign.custom_operator("NhwcConv"))
    bundle = read_bundle(root)
    assert bundle.foreign is not None
    header = bundle.foreign.parts["unet"].header
    assert why_no_kernel(ort, header, [CPU])
    assert why_no_kernel(ort, header, [CUDA, CPU]) == ""


def test_values_that_are_not_finite_name_the_part_on_first_use(folder: Folder) -> None:
    def spoil(model: Any) -> None:
        foreign.rename(model, "out_sample", "/fine")
        model.graph.node.append(
            foreign.helper.make_node(
                "Div", ["/fine", foreign.constant(model, "/nothing", np.float32(0))], ["out_sample"]
            )
        )

    pipe = edgediff.load(edit_model(folder(), "unet", spoil))
    with pytest.raises(EngineError, match=r"unet gave \d+ of \d+ values of out_sample that are not finite"):
        pipe("a tiger", num_inference_steps=1)


def test_another_shape_than_the_configs_say_is_an_error(folder: Folder) -> None:
    """The decoder enlarges by 4, and a config that names four levels says 8."""
    root = folder()
    for part in ("vae_decoder", "vae_encoder"):
        foreign.edit_json(root / part / "config.json", block_out_channels=[8, 8, 8, 8])
    with pytest.raises(
        EngineError, match=r"vae_decoder gave sample of shape \[1, 3, 32, 32\]; it must be \[1, 3, 64, 64\]"
    ):
        edgediff.load(root)("a tiger", num_inference_steps=1)


def test_sdxl_reads_the_states_before_the_last(family_bundle: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = family_bundle("sdxl")
    root = make_foreign(bundle, tmp_path / "sdxl")
    call: dict[str, Any] = {"num_inference_steps": 3, "seed": 5, "output_type": "latent"}
    for more in ({}, {"clip_skip": 1}, {"negative_prompt": "", "original_size": (64, 48)}):
        ours, theirs = (edgediff.load(path)("a red apple", **call, **more).latents for path in (bundle, root))
        np.testing.assert_allclose(theirs, ours, atol=1e-4)
    foreign.edit_json(root / "text_encoder_2" / "config.json", num_hidden_layers=9)
    with pytest.raises(BundleError, match=r"SDXL reads hidden_states\.8, the last state but one: export it again"):
        edgediff.load(root)
