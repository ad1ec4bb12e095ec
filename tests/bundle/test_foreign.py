"""Other exporters' folders: what their configs and graphs say, and everything that is refused, by name."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx", reason="onnx, which writes the graphs, is not installed (extra test)")

import onnx

import edgediff
from edgediff import BundleError, BundleNotFoundError
from edgediff.bundle.foreign.tokenizers import tokenizer_file
from edgediff.bundle.onnx_file.header import Port
from edgediff.bundle.onnx_file.walk import read_header
from edgediff.bundle.reading import read_bundle
from edgediff.cli.main import main

from ..support import foreign
from ..support.foreign import edit_json, edit_model, make_foreign

Folder = Callable[[], Path]


@pytest.fixture(scope="module")
def made(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_foreign(tiny_bundle, tmp_path_factory.mktemp("foreign") / "tiny")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Folder:
    """A fresh copy, to break."""
    return lambda: Path(shutil.copytree(made, tmp_path / "tiny"))


def test_a_folder_says_what_its_bundle_says(made: Path, tiny_bundle: Path) -> None:
    theirs, ours = read_bundle(made), read_bundle(tiny_bundle)
    assert theirs.foreign is not None
    assert theirs.foreign.notes == ()
    for name in ("kind", "schedule", "latent", "defaults", "zero_negative", "text_encoders", "inpaints"):
        assert getattr(theirs, name) == getattr(ours, name), name
    assert [(t.max_length, t.pad_id) for t in theirs.text] == [(t.max_length, t.pad_id) for t in ours.text]
    assert set(theirs.parts) == set(ours.parts)


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae_decoder", "vae_encoder"])
def test_a_header_is_what_onnx_reads(made: Path, part: str) -> None:
    path = made / part / "model.onnx"
    header, model = read_header(path), onnx.load(str(path))
    types = {1: "float32", 7: "int64"}

    def ports(values: Any) -> tuple[Port, ...]:
        kinds = [(v.name, v.type.tensor_type) for v in values]
        return tuple(
            Port(name, types[kind.elem_type], tuple(d.dim_param or d.dim_value for d in kind.shape.dim))
            for name, kind in kinds
        )

    assert header.inputs == ports(model.graph.input)
    assert header.outputs == ports(model.graph.output)
    assert header.opsets == {o.domain: o.version for o in model.opset_import}
    assert header.operators == {(n.domain, n.op_type) for n in model.graph.node}
    assert header.producer == model.producer_name
    weights = sum(len(t.raw_data) // 4 for t in model.graph.initializer if t.data_type == 1)
    assert weights <= header.weights["float32"] <= weights + 20_000  # those of constants besides


@pytest.mark.parametrize("kind", [[], {}])
def test_a_scheduler_of_no_class(folder: Folder, kind: Any) -> None:
    root = folder()
    edit_json(root / "scheduler" / "scheduler_config.json", _class_name=kind, beta_end=None)
    with pytest.raises(BundleError, match=r"scheduler_config\.json: _class_name is (\[\]|\{\}); it must be"):
        read_bundle(root)


@pytest.mark.parametrize("sizes", [(-1,), (None, 4, -1, -1)])
def test_a_size_below_0_is_any(folder: Folder, sizes: tuple[int | None, ...]) -> None:
    bundle = read_bundle(edit_model(folder(), "unet", foreign.fix_sizes(*sizes)))
    assert bundle.foreign is not None
    shape = bundle.foreign.parts["unet"].inputs["sample"].shape
    assert [shape[k] for k, size in enumerate(sizes) if size == -1] == ["?"] * sizes.count(-1)


def test_added_tokens_that_are_no_list(folder: Folder) -> None:
    root = folder()
    edit_json(root / "tokenizer" / "tokenizer.json", added_tokens=1)
    with pytest.raises(BundleError, match=r"tokenizer\.json: added_tokens is 1; it must be a list"):
        read_bundle(root)


def test_an_added_token_that_is_no_text(folder: Folder) -> None:
    root = folder()
    data = json.loads((root / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))
    edit_json(root / "tokenizer" / "tokenizer.json", added_tokens=[*data["added_tokens"], {"content": {}, "id": 1}])
    read_bundle(root)  # the ids of others tell what is needed
    with pytest.raises(BundleError, match="added"):
        edgediff.load(root)("a", num_inference_steps=1)


def test_weights_are_not_read(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Megabytes inside the file cost no more than none."""
    model = onnx.load(str(made / "vae_decoder" / "model.onnx"))
    path = tmp_path / "large.onnx"
    model.graph.initializer.append(onnx.TensorProto(name="large", data_type=1, dims=[5_000_000]))
    model.graph.initializer[-1].raw_data = bytes(20_000_000)
    onnx.save(model, str(path))
    read = 0

    class Counting(io.FileIO):
        def readinto(self, buffer: Any) -> int | None:
            nonlocal read
            count = super().readinto(buffer)
            read += count or 0
            return count

    monkeypatch.setattr(Path, "open", lambda self, mode: io.BufferedReader(Counting(self, mode), 8192))
    header = read_header(path)
    assert header.weights["float32"] > 5_000_000
    assert read < 2_000_000


def test_damaged_graphs_are_errors_and_end(made: Path, tmp_path: Path) -> None:
    whole = (made / "vae_decoder" / "model.onnx").read_bytes()
    path, dice = tmp_path / "model.onnx", random.Random(0)
    said = []
    for _ in range(80):
        broken = bytearray(whole[: dice.randrange(1, len(whole))] if dice.random() < 0.3 else whole)
        for _ in range(dice.randrange(1, 20)):
            broken[dice.randrange(len(broken))] = dice.randrange(256)
        path.write_bytes(broken)
        try:
            read_header(path)
        except BundleError as error:
            said.append(str(error))
    assert len(said) > 20
    assert all(str(path) in message for message in said)


def test_a_tensor_of_very_many_dimensions_ends_at_once(made: Path, tmp_path: Path) -> None:
    model = onnx.load(str(made / "vae_decoder" / "model.onnx"))
    model.graph.initializer.append(onnx.TensorProto(name="deep", data_type=1, dims=[2**40] * 200_000))
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="a tensor has more than 64 dimensions"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
            "it is a Git-LFS pointer.* git lfs pull",
        ),
        (b"<!DOCTYPE html><html></html>", "it is a web page"),
        (b"PK\x03\x04 and more", "it is a zip archive"),
        (b"\x0a\x03abc", "it holds no graph"),
    ],
)
def test_what_is_no_graph_is_named(content: bytes, said: str, folder: Folder) -> None:
    root = folder()
    (root / "unet" / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=rf"unet.model\.onnx is not an ONNX file: {said}"):
        read_bundle(root)


@pytest.mark.parametrize("location", ["../weights.pb", "/etc/passwd", "a/../../b", "c:/weights", "a\\b"])
def test_weights_stay_inside_the_folder(location: str, folder: Folder) -> None:
    root = edit_model(folder(), "vae_decoder", foreign.external(location))
    with pytest.raises(BundleError, match="which leaves its folder"):
        read_bundle(root)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git-LFS pointer"), (b"", "empty")],
)
def test_weights_that_are_not_there_yet(content: bytes, said: str, folder: Folder) -> None:
    root = edit_model(folder(), "vae_decoder", foreign.external("w.pb"))
    (root / "vae_decoder" / "w.pb").write_bytes(content)
    with pytest.raises(BundleError, match=rf"keeps weights in w\.pb, which is {said}"):
        read_bundle(root)


def test_weights_beside_a_graph_are_files_of_the_bundle(folder: Folder) -> None:
    root = edit_model(folder(), "vae_decoder", foreign.external("weights.pb"))
    with pytest.raises(BundleError, match=r"keeps weights in weights\.pb, which is missing"):
        read_bundle(root)
    (root / "vae_decoder" / "weights.pb").write_bytes(bytes(100))
    with pytest.raises(BundleError, match=r"reads weights\.pb up to byte \d+; it has 100"):
        read_bundle(root)
    (root / "vae_decoder" / "weights.pb").write_bytes(bytes(100_000))
    files = [(f.path, f.size) for f in read_bundle(root).parts["vae_decoder"].files]
    assert ("vae_decoder/weights.pb", 100_000) in files


def lose_output(model: Any) -> None:
    foreign.rename(model, "out_sample", "noise")
    model.graph.output[0].name = "noise"
    model.graph.output.append(onnx.helper.make_tensor_value_info("more", 1, []))
    model.graph.node.append(onnx.helper.make_node("Identity", ["noise"], ["more"]))


def add_input(model: Any) -> None:
    model.graph.input.append(onnx.helper.make_tensor_value_info("mid_block_residual", 1, [1]))


def bfloat16(model: Any) -> None:
    foreign.named(model.graph.input, "sample").type.tensor_type.elem_type = 16


def draws(model: Any) -> None:
    model.graph.node.append(onnx.helper.make_node("RandomNormalLike", ["sample"], ["/drawn"]))


@pytest.mark.parametrize(
    ("part", "edit", "said"),
    [
        ("unet", lose_output, r"unet/model\.onnx gives noise, more; out_sample or sample is not among them"),
        ("unet", add_input, r"unet/model\.onnx takes 'mid_block_residual', which this version cannot give"),
        ("unet", bfloat16, r"sample is of type bfloat16; this version takes float32, float16, float64"),
    ],
)
def test_graphs_that_cannot_be_told(part: str, edit: foreign.Edit, said: str, folder: Folder) -> None:
    with pytest.raises(BundleError, match=said):
        read_bundle(edit_model(folder(), part, edit))


def test_an_encoder_that_draws_is_left_out_where_it_is_not_needed(folder: Folder) -> None:
    bundle = read_bundle(edit_model(folder(), "vae_encoder", draws))
    assert "vae_encoder" not in bundle.parts
    assert bundle.foreign is not None
    assert "draws its latents itself (RandomNormalLike), which no seed gives again" in bundle.foreign.notes[0]


@pytest.mark.parametrize(
    ("config", "changes", "said"),
    [
        ("unet/config.json", {"class_embed_type": "timestep"}, "class_embed_type is 'timestep', which this version"),
        ("unet/config.json", {"block_out_channels": 3}, "block_out_channels is 3; it must be a list"),
        ("vae_decoder/config.json", {"scaling_factor": "big"}, "scaling_factor is 'big'; it must be a positive number"),
        ("vae_decoder/config.json", {"latents_mean": [0.0]}, r"latents_mean is \[0\.0\], which this version"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1]}, "trained_betas"),
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatch", "steps_offset": None},
         "'FlowMatch' is no scheduler that this version knows, and leaves steps_offset out; it knows DDIMScheduler"),
        ("tokenizer/tokenizer_config.json", {"tokenizer_class": "T5Tokenizer"}, "is a T5Tokenizer; this version reads"),
        ("tokenizer/special_tokens_map.json", {"pad_token": "[PAD]"}, r"pad_token is '\[PAD\]', which is not in"),
        ("model_index.json", {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]},
         r"text_encoder_2.model\.onnx is missing, and model_index\.json names it"),
    ],
)  # fmt: skip
def test_configs_that_cannot_be_run(config: str, changes: dict[str, Any], said: str, folder: Folder) -> None:
    root = folder()
    edit_json(root / config, **changes)
    with pytest.raises(BundleError, match=said):
        read_bundle(root)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json"])
def test_a_number_that_transformers_writes_for_no_limit(folder: Folder, made: Path, name: str) -> None:
    """A tokenizer of no ``model_max_length`` says int(1e30)."""
    root = folder()
    part = "tokenizer" if name.startswith("tokenizer") else "text_encoder"
    config = json.loads((root / part / name).read_text()) if (root / part / name).is_file() else {}
    (root / part / name).write_text(json.dumps(config | {"model_max_length": int(1e30)}))
    assert read_bundle(root).text == read_bundle(made).text


def test_other_pipelines_are_named(folder: Folder) -> None:
    root = folder()
    edit_json(root / "model_index.json", _class_name="FluxPipeline")
    shutil.copytree(root / "unet", root / "transformer")
    with pytest.raises(BundleError, match="is FluxPipeline with a transformer; this version runs models with a U-Net"):
        read_bundle(root)
    shutil.rmtree(root / "transformer")
    shutil.rmtree(root / "unet")
    with pytest.raises(BundleNotFoundError, match=r"unet.model\.onnx is missing; there are text_encoder, vae_decoder"):
        read_bundle(root)


def test_what_no_config_says_is_assumed_and_noted(folder: Folder) -> None:
    """The oldest folders hold graphs alone: sizes are then those of Stable Diffusion."""
    root = folder()
    for path in root.glob("*/config.json"):
        path.unlink()
    edit_json(root / "model_index.json", _class_name="OnnxStableDiffusionPipeline")
    edit_json(root / "scheduler" / "scheduler_config.json", steps_offset=0, skip_prk_steps=None)
    bundle = read_bundle(root)
    assert (bundle.latent.factor, bundle.latent.scale, bundle.latent.size_multiple) == (8, 0.18215, 64)
    assert (bundle.defaults.width, bundle.defaults.height) == (512, 512)
    assert bundle.schedule.steps_offset == 1  # as its pipeline sets it
    assert bundle.foreign is not None
    assert len(bundle.foreign.notes) == 6
    assert "the autoencoder's scaling_factor is assumed to be 0.18215: no config says" in bundle.foreign.notes
    assert any("PNDMScheduler with its settings has no twin here" in note for note in bundle.foreign.notes)


def test_a_tokenizer_of_vocab_and_merges(folder: Folder, made: Path) -> None:
    root = folder()
    (root / "tokenizer" / "tokenizer.json").unlink()
    bundle = read_bundle(root)
    assert bundle.text[0].file.path == "tokenizer/vocab.json"
    assert bundle.text[0].pad_id == read_bundle(made).text[0].pad_id
    (root / "tokenizer" / "merges.txt").unlink()
    with pytest.raises(BundleNotFoundError, match=r"holds neither tokenizer\.json nor vocab\.json with merges\.txt"):
        tokenizer_file(root, root / "tokenizer")
    (root / "tokenizer" / "spiece.model").write_bytes(b"")
    with pytest.raises(BundleError, match=r"holds spiece\.model; this version reads CLIP's byte-pair encoding alone"):
        tokenizer_file(root, root / "tokenizer")


def test_info_and_verify_say_that_it_is_foreign(made: Path, folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(made)]) == 0
    said = capsys.readouterr().out
    assert "foreign    StableDiffusionPipeline, graphs by pytorch: no checksums, no golden tensors" in said
    assert "<- timestep float32[batch]  by timestep float32[]" in said
    assert "latent_logvar float32[batch, 4, latent_height, latent_width]  by latent_parameters" in said
    assert main(["info", str(edit_model(folder(), "unet", foreign.custom_operator("NhwcConv")))]) == 0
    said = capsys.readouterr().out
    assert (
        "unet            opset ai.onnx 18, com.microsoft 1; beside them com.microsoft.MultiHeadAttention, com.micros"
        in said
    )
    assert "passed over: its graph holds com.microsoft.NhwcConv, for which ONNX Runtime" in said
    assert main(["verify", str(made)]) == 2
    assert f"make a bundle of it: edgediff adopt {made} BUNDLE" in capsys.readouterr().err


def test_generate_draws_from_a_folder(made: Path, tmp_path: Path) -> None:
    command = [
        "generate",
        "a tiger",
        "--model",
        str(made),
        "--steps",
        "2",
        "--seed",
        "1",
        "-o",
        str(tmp_path / "a.png"),
    ]
    assert main(command) == 0
    assert (tmp_path / "a.png").stat().st_size > 100


def test_another_identity_for_other_settings(made: Path, folder: Folder) -> None:
    root = folder()
    assert read_bundle(root).id == read_bundle(made).id
    edit_json(root / "unet" / "config.json", sample_size=16)
    assert read_bundle(root).id != read_bundle(made).id
    assert json.loads((root / "unet" / "config.json").read_text(encoding="utf-8"))["sample_size"] == 16
