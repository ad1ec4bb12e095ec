"""Checkpoints in one file: every family, exact weights, true sizes by their headers, no network."""

from __future__ import annotations

import json
import socket
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import infer_diffusers_model_type
from safetensors.torch import load_file, save_file

from edgediff import ArgumentError, BundleError, BundleNotFoundError
from edgediff.bundle.reading import read_bundle
from edgediff_export.convert import export
from edgediff_export.manifest import model_facts
from edgediff_export.sources import published_configs as published
from edgediff_export.sources.clip_tokenizer import clip_tokenizer
from edgediff_export.sources.folder import Folder
from edgediff_export.sources.loading import model_class
from edgediff_export.sources.open import open_source
from edgediff_export.sources.safetensors_header import hollow_tensors, read_tensors
from edgediff_export.sources.single_file import SingleFile, class_of_component
from edgediff_export.sources.vae_file import load_vae
from tests.support import families
from tests.support.original_layout import original, vae, write_original

KINDS = {
    "sd15": "sd1",
    "sd21": "sd2",
    "sdxl": "sdxl",
    "sdxl-refiner": "refiner",
    "inpaint": "sd1",
    "sdxl-inpaint": "sdxl",
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("something wants the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For each family a folder, and the same model in one file."""
    root = tmp_path_factory.mktemp("single")
    for name, kind in KINDS.items():
        families.make(name, root / name)
        write_original(families.pipeline(name), root / f"{name}.safetensors", kind)
    return root


def weights_of(source: Any, component: str) -> dict[str, Any]:
    """The weights that graphs are bound to, read; but for those that no parameter has."""
    known = dict(source.hollow(component).named_parameters())
    return {name: weight.read() for name, weight in source.weights(component).items() if name in known}


@pytest.mark.parametrize("name", KINDS)
def test_weights_are_the_folders(sources: Path, name: str) -> None:
    folder = Folder(sources / name)
    file = open_source(sources / f"{name}.safetensors", sources / name)
    assert file.pipeline == folder.pipeline
    components = [c for c in ("text_encoder", "text_encoder_2", "unet", "vae") if folder.has(c)]
    for component in components:
        wanted, found = folder.reference(component, wide=True).state_dict(), file.load(component).state_dict()
        assert wanted.keys() == found.keys()
        for key, value in wanted.items():
            assert torch.equal(found[key], value), (component, key)
        for source in (folder, file):  # as tracing reads them
            assert weights_of(source, component).keys() >= {
                name for name, _ in file.hollow(component).named_parameters()
            }
            for key, value in weights_of(source, component).items():
                assert np.array_equal(value, wanted[key].numpy()), (component, key)
        assert not [p for p in file.load(component).buffers() if p.is_meta]
    assert {c: file.has(c) for c in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")} == {
        c: folder.has(c) for c in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    }
    assert model_facts(file, {}) == model_facts(folder, {})


@pytest.mark.parametrize("name", ["sd21", "sdxl"])
def test_the_bundle_is_the_folders(sources: Path, tmp_path: Path, name: str) -> None:
    a = export(sources / name, tmp_path / "a", precision="fp32")
    b = export(sources / f"{name}.safetensors", tmp_path / "b", precision="fp32", config=sources / name)
    # Torch's own outputs may differ in the last digit, by how weights lie in memory.
    hashes = [{f.path: f.sha256 for n, f in read_bundle(r).files() if n != "golden"} for r in (a, b)]
    assert hashes[0] == hashes[1]


def test_half_files_load_in_float32(sources: Path, tmp_path: Path) -> None:
    path = write_original(families.pipeline("sd15"), tmp_path / "half.safetensors", "sd1", dtype=torch.float16)
    unet = SingleFile(path, sources / "sd15").load("unet")
    wanted = Folder(sources / "sd15").reference("unet", wide=True).state_dict()
    assert all(torch.equal(v, wanted[k].half().float()) for k, v in unet.state_dict().items())
    for name in ("unet", "vae", "text_encoder"):
        loaded = SingleFile(path, sources / "sd15").load(name).state_dict()
        for key, values in weights_of(SingleFile(path, sources / "sd15"), name).items():
            assert np.array_equal(values, loaded[key].numpy()), key


def header_only(
    path: Path, shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None, step: int | None = None
) -> Path:
    """A safetensors file of these shapes whose data are a hole, but for a trainer's ``global_step``."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    if step is not None:
        header["global_step"] = {"dtype": "I64", "shape": [], "data_offsets": [at, at + 8]}
    text = json.dumps(header).encode()
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + at)
        if step is not None:
            f.seek(8 + len(text) + at)
            f.write(struct.pack("<q", step))
    return path


class Pipe:
    """The published model's modules on the meta device."""

    def __init__(self, family: published.Family, channels: int) -> None:
        for component, config in family.configs.items():
            cls, given = model_class(class_of_component(component)), dict(config)
            if component == "unet":
                given["in_channels"] = channels
            with torch.device("meta"):
                made = cls.from_config(given) if hasattr(cls, "load_config") else cls(cls.config_class(**given))
            setattr(self, component, made)


def true_shapes(index: int, channels: int = 4) -> dict[str, tuple[int, ...]]:
    pipe = Pipe(published.FAMILIES[index], channels)
    return {k: tuple(v.shape) for k, v in original(pipe, ["sd1", "sd2", "sdxl", "refiner", "turbo"][index]).items()}


@pytest.mark.parametrize(
    ("index", "channels", "kind", "pipeline", "parameters", "side", "prediction", "sampler"),
    [
        (0, 4, "v1", "StableDiffusionPipeline", 859_520_964, 512, "epsilon", "plms"),
        (0, 9, "inpainting", "StableDiffusionInpaintPipeline", 859_535_364, 512, "epsilon", "plms"),
        (1, 4, "v2", "StableDiffusionPipeline", 865_910_724, 768, "v_prediction", "ddim"),
        (1, 9, "inpainting_v2", "StableDiffusionInpaintPipeline", 865_925_124, 512, "epsilon", "ddim"),
        (2, 4, "xl_base", "StableDiffusionXLPipeline", 2_567_463_684, 1024, "epsilon", "euler"),
        (2, 9, "xl_inpaint", "StableDiffusionXLInpaintPipeline", 2_567_478_084, 1024, "epsilon", "euler"),
        (3, 4, "xl_refiner", "StableDiffusionXLImg2ImgPipeline", 2_259_526_660, 1024, "epsilon", "euler"),
        (4, 4, "v2", "StableDiffusionPipeline", 865_910_724, 512, "epsilon", "euler"),
    ],
)
def test_true_sizes_by_their_headers(
    tmp_path: Path,
    index: int,
    channels: int,
    kind: str,
    pipeline: str,
    parameters: int,
    side: int,
    prediction: str,
    sampler: str,
) -> None:
    shapes = true_shapes(index, channels)
    assert infer_diffusers_model_type(hollow_tensors(shapes)) == kind  # the names are those that diffusers knows
    source = open_source(header_only(tmp_path / "m.safetensors", shapes))
    assert source.pipeline == pipeline
    assert sum(p.numel() for p in source.hollow("unet").parameters()) == parameters
    facts = model_facts(source, {})
    assert (facts["defaults"]["width"], facts["schedule"]["prediction_type"]) == (side, prediction)
    assert facts["defaults"]["sampler"] == sampler
    assert [t["pad_id"] for t in facts["text"]] == [[49407], [0], [49407, 0], [0], [0]][index]
    assert all(t["max_length"] == 77 for t in facts["text"])
    assert facts["latent"]["scale"] == (0.13025 if index in (2, 3) else 0.18215)
    assert facts.get("zero_negative", False) == (index == 2)
    assert (facts["defaults"]["num_inference_steps"] == 1) == (index == 4)


def test_what_a_file_says_of_its_prediction(tmp_path: Path) -> None:
    xl, two = true_shapes(2), true_shapes(1)
    marked = SingleFile(header_only(tmp_path / "a.safetensors", {**xl, "v_pred": (0,), "ztsnr": (0,)}))
    schedule = model_facts(marked, {})["schedule"]
    assert (schedule["prediction_type"], schedule["rescale_betas_zero_snr"]) == ("v_prediction", True)
    said = header_only(tmp_path / "b.safetensors", two, {"modelspec.prediction_type": "epsilon"})
    assert model_facts(SingleFile(said), {})["schedule"]["prediction_type"] == "epsilon"
    assert model_facts(SingleFile(said), {})["defaults"]["width"] == 512
    asked = SingleFile(header_only(tmp_path / "c.safetensors", two), prediction_type="epsilon")
    assert model_facts(asked, {})["schedule"]["prediction_type"] == "epsilon"
    with pytest.raises(ArgumentError, match="no prediction_type 'x0'; choose from epsilon, v_prediction"):
        SingleFile(said, prediction_type="x0")


@pytest.mark.parametrize(
    ("metadata", "step", "side"),
    [
        ({"modelspec.predict_key": "epsilon"}, None, 512),
        ({"modelspec.predict_key": "v"}, None, 768),
        ({"modelspec.architecture": "stable-diffusion-v2-512"}, None, 512),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, None, 768),
        ({"modelspec.architecture": "stable-diffusion-v2-512", "modelspec.prediction_type": "v"}, None, 768),
        ({}, 875_000, 512),  # Stable Diffusion 2 base
        ({}, 110_000, 768),  # Stable Diffusion 2.1
    ],
)
def test_ways_to_say_it(tmp_path: Path, metadata: dict[str, str], step: int | None, side: int) -> None:
    facts = model_facts(SingleFile(header_only(tmp_path / "m.safetensors", true_shapes(1), metadata, step)), {})
    assert facts["defaults"]["width"] == side
    assert facts["schedule"]["prediction_type"] == ("epsilon" if side == 512 else "v_prediction")


def test_a_config_and_what_the_file_says(sources: Path, tmp_path: Path) -> None:
    """The argument comes first, then the file's marker, then the config's scheduler, then metadata."""
    config, one = sources / "sd15", families.pipeline("sd15")

    def found(name: str, asked: str | None = None, **more: Any) -> dict[str, Any]:
        return SingleFile(
            write_original(one, tmp_path / f"{name}.safetensors", "sd1", **more), config, asked
        ).scheduler()

    plain = Folder(config).scheduler()
    assert plain["prediction_type"] == "epsilon"
    assert found("a") == plain
    assert found("b", metadata={"modelspec.prediction_type": "v"}) == plain
    assert found("c", "v_prediction") == plain | {"prediction_type": "v_prediction"}
    marks = {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}
    assert found("d", extra={"v_pred": torch.empty(0)}) == plain | {"prediction_type": "v_prediction"}
    assert found("e", "epsilon", extra={"v_pred": torch.empty(0)}) == plain
    rescaled = found("f", extra=marks)
    assert (rescaled["prediction_type"], rescaled["rescale_betas_zero_snr"]) == ("v_prediction", True)
    assert rescaled["timestep_spacing"] == "trailing"


def test_clips_tokenizer() -> None:
    words = clip_tokenizer("!")
    assert len(words) == 49408
    assert words("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert (words.bos_token_id, words.eos_token_id, words.pad_token_id) == (49406, 49407, 0)
    assert clip_tokenizer("<|endoftext|>").pad_token_id == 49407
    # OpenAI's own ids of a sentence with an accent, an emoji's bytes and a contraction.
    assert words.decode(words("a café isn't 🍎").input_ids[1:-1]) == "a café isn 't 🍎"


def test_a_vae_in_a_file(sources: Path, tmp_path: Path) -> None:
    """Both layouts; the rest of the model stays."""
    other = families.pipeline("sd15").vae
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.01)
    save_file({k: v.contiguous().clone() for k, v in vae(other).items()}, tmp_path / "ldm.safetensors")
    other.save_pretrained(tmp_path / "vae")
    inner = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    found = [
        export(sources / "sd15", tmp_path / name, precision="fp32", vae=path)
        for name, path in (("a", tmp_path / "ldm.safetensors"), ("b", inner), ("c", tmp_path / "vae"))
    ]
    hashes = [{f.path: f.sha256 for _, f in read_bundle(root).files()} for root in found]
    assert hashes[0] == hashes[1] == hashes[2]


def test_vaes_of_other_files(sources: Path, tmp_path: Path) -> None:
    """A whole checkpoint; attention's names of before ``to_q``; files that hold none, found before any work."""
    folder = Folder(sources / "sd15")
    config, wanted = folder.hollow("vae").config, folder.reference("vae", wide=True).state_dict()
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, value in wanted.items():
        new = name
        for a, b in older.items():
            new = new.replace(f".{a}.", f".{b}.")
        renamed[new] = value
    assert any(".query." in name for name in renamed)
    save_file(renamed, tmp_path / "older.safetensors")
    for path in (sources / "sd15.safetensors", tmp_path / "older.safetensors"):
        found = load_vae(path, config).state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[k], wanted[k]) for k in wanted)
    out = tmp_path / "out"
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(BundleError, match="holds no autoencoder; it looks like a LoRA: give it as --lora"):
        export(sources / "sd15", out, vae=tmp_path / "lora.safetensors")
    renamed.pop("quant_conv.bias")
    save_file(renamed, tmp_path / "less.safetensors")
    with pytest.raises(BundleError, match=r"vae lacks 1 of the \d+ tensors .*, first quant_conv\.bias"):
        export(sources / "sd15", out, vae=tmp_path / "less.safetensors")
    with pytest.raises(BundleError, match=r"has no autoencoder that .* could stand for"):
        export(families.make("pixel", tmp_path / "pixels"), out, vae=sources / "sd15.safetensors")
    assert not out.exists()


def test_older_and_newer_names(sources: Path, tmp_path: Path) -> None:
    """Early files' text encoders without their inner name, and SD-Turbo in SDXL's names."""
    weights = load_file(sources / "sd15.safetensors")
    early = {
        k.replace("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."): v
        for k, v in weights.items()
    }
    assert early.keys() != weights.keys()
    save_file(early, tmp_path / "early")  # a name without an ending, as caches have them
    write_original(families.pipeline("sd21"), tmp_path / "turbo.safetensors", "turbo")
    for path, name in (("early", "sd15"), ("turbo.safetensors", "sd21")):
        folder, file = Folder(sources / name), open_source(tmp_path / path, sources / name)
        for component in ("text_encoder", "unet", "vae"):
            wanted, found = folder.reference(component, wide=True).state_dict(), file.load(component).state_dict()
            assert wanted.keys() == found.keys()
            assert all(torch.equal(found[k], wanted[k]) for k in wanted), (path, component)
        assert model_facts(file, {}) == model_facts(folder, {})


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl", "sdxl-refiner"])
def test_diffusers_reads_the_same(sources: Path, name: str) -> None:
    """Its own way from the file to a pipeline."""
    folder, file = sources / name, SingleFile(sources / f"{name}.safetensors", sources / name)
    cls = model_class(file.pipeline)
    known = {c: None for c in ("safety_checker", "feature_extractor", "image_encoder") if c in cls._optional_components}
    read = cls.from_single_file(str(file.path), config=str(folder), local_files_only=True, **known)
    for component in ("text_encoder", "text_encoder_2", "unet", "vae"):
        if file.has(component):
            wanted, found = getattr(read, component).state_dict(), file.load(component).state_dict()
            assert wanted.keys() == found.keys()
            assert all(torch.equal(found[k], wanted[k]) for k in wanted), component


def damaged(sources: Path, tmp_path: Path, change: Any) -> Path:
    weights = load_file(sources / "sd15.safetensors")
    change(weights)
    save_file(weights, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_bad_files(sources: Path, tmp_path: Path) -> None:
    out, config = tmp_path / "out", sources / "sd15"
    with pytest.raises(BundleNotFoundError, match="no checkpoint at"):
        export(tmp_path / "no.safetensors", out)
    whole = (sources / "sd15.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BundleError, match=r"cut\.safetensors is cut: its tensors end at byte [\d,]+, the file at"):
        export(tmp_path / "cut.safetensors", out)
    (tmp_path / "old.ckpt").write_bytes(b"PK\x03\x04 pickled")
    with pytest.raises(
        BundleError, match=r"is not a safetensors file: it is a file of torch\.save.*; convert it first: p"
    ):
        export(tmp_path / "old.ckpt", out)
    torch.save({"a": torch.zeros(1)}, tmp_path / "renamed.safetensors")
    with pytest.raises(BundleError, match=r"is not a safetensors file: .* convert it first: python"):
        open_source(tmp_path / "renamed.safetensors")
    first = "model.diffusion_model.input_blocks.0.0.weight"
    broken = damaged(sources, tmp_path, lambda w: w[first].fill_(torch.nan))
    with pytest.raises(BundleError, match=r"unet has weights that are not finite, first in conv_in\.weight"):
        export(broken, out, config=config)
    with pytest.raises(BundleError, match=r"unet lacks 1 weights, first conv_out\.bias; give a fitting config"):
        export(damaged(sources, tmp_path, lambda w: w.pop("model.diffusion_model.out.2.bias")), out, config=config)
    with pytest.raises(BundleError, match=r"text_encoder lacks .* weights, .*; give a fitting config as --config"):
        export(sources / "sd15.safetensors", out)  # of toy width, and no config says so
    with pytest.raises(ArgumentError, match=r"config is .*; it is for single files"):
        export(sources / "sd15", out, config=sources / "sd15")
    assert not out.exists()


def test_weights_without_a_place(sources: Path, tmp_path: Path) -> None:
    """A model of another kind in the same clothes, as Stable Diffusion 2's unCLIP."""
    extra = {"model.diffusion_model.label_emb.0.0.weight": torch.ones(3, 3)}
    write_original(families.pipeline("sd15"), tmp_path / "m.safetensors", "sd1", extra=extra)
    with pytest.raises(
        BundleError, match=r"unet: 1 weights have no place in the U-Net, first model\.diffusion_model\.label_emb"
    ):
        SingleFile(tmp_path / "m.safetensors", sources / "sd15")
    write_original(families.pipeline("sdxl"), tmp_path / "m.safetensors", "sdxl", extra={"edm_mean": torch.ones(1)})
    with pytest.raises(BundleError, match="has edm_mean: it is trained on EDM's noise levels"):
        SingleFile(tmp_path / "m.safetensors")


def test_the_header_tells_what_does_not_fit(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any weight is read: distilled models, models of depth, another family's config."""

    def refuse(*_: Any) -> None:
        raise AssertionError("a weight is read")

    monkeypatch.setattr("edgediff_export.sources.single_file.read_tensors", refuse)
    xl, two = true_shapes(2), true_shapes(1)
    label, deep = "model.diffusion_model.label_emb.0.0.weight", "model.diffusion_model.middle_block.1."
    for change, message in (
        ({k: v for k, v in xl.items() if k != label}, r"unet lacks model\.diffusion_model\.label_emb\.0\.0\.weight"),
        (
            {k: v for k, v in xl.items() if not k.startswith(deep)},
            r"\d+ weights have no place in the U-Net, first model\.diff",
        ),
        (
            {**xl, f"{deep}proj_in.weight": (640, 640)},
            r"mid_block.* has shape \(640, 640\), its config wants \(1280, 1280\)",
        ),
        (true_shapes(1, 5), r"its U-Net takes 5 channels; this version exports 4, or 9 for inpainting"),
        ({k: v for k, v in two.items() if "resblocks.5." not in k}, r"text_encoder lacks \d+ weights"),
    ):
        with pytest.raises(BundleError, match=message):
            SingleFile(header_only(tmp_path / "m.safetensors", change))
    with pytest.raises(
        BundleError, match=r"has the text encoders of SDXL \(text_encoder, text_encoder_2\); the config at"
    ):
        SingleFile(sources / "sdxl.safetensors", sources / "sd15")


def test_tensors_widen_one_at_a_time(tmp_path: Path) -> None:
    values = {"a": torch.tensor([1.5, -2.0]), "b": torch.arange(3), "c": torch.tensor([0.25])}
    stored = {"a": values["a"].bfloat16(), "b": values["b"], "c": values["c"].to(torch.float8_e4m3fn)}
    save_file(stored, tmp_path / "m.safetensors")
    found = read_tensors(tmp_path / "m.safetensors", values)
    assert {k: v.dtype for k, v in found.items()} == {"a": torch.float32, "b": torch.int64, "c": torch.float32}
    assert all(torch.equal(found[k], values[k]) for k in values)


def test_what_had_to_be_assumed_is_said(tmp_path: Path) -> None:
    two = header_only(tmp_path / "two.safetensors", true_shapes(1))
    assert "taken as v_prediction" in SingleFile(two).guesses()
    assert SingleFile(two, prediction_type="epsilon").guesses() == ""
    assert SingleFile(header_only(tmp_path / "one.safetensors", true_shapes(0))).guesses() == ""


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["lora_unet_down_blocks_0.lora_down.weight"], "looks like a LoRA: give it as --lora"),
        (["double_blocks.0.img_attn.qkv.weight"], "looks like a model of the Flux or SD3 kind"),
        (["control_model.input_blocks.0.0.weight"], "looks like a ControlNet"),
        (["down_blocks.0.resnets.0.conv1.weight"], "looks like one part of a diffusers folder"),
        (["decoder.up.0.block.0.conv1.weight"], "looks like an autoencoder: give it as --vae"),
        (["decoder.up_blocks.0.resnets.0.conv1.weight"], "looks like an autoencoder: give it as --vae"),
        (["model.diffusion_model.out.2.bias", "first_stage_model.decoder.up.0"], "looks like a U-Net without its text"),
        (["clip_g", "clip_l"], "looks like a textual inversion: give it as --embedding"),
        (["a", "b"], "holds no text encoder of Stable Diffusion 1, .*; among its 2 names: a, b"),
        (
            ["cond_stage_model.transformer.text_model.x", "first_stage_model.x"],
            "is of the family Stable Diffusion 1 and holds no U-Net",
        ),
    ],
)
def test_files_of_another_kind(tmp_path: Path, names: list[str], message: str) -> None:
    save_file({name: torch.zeros(1) for name in names}, tmp_path / "m.safetensors")
    with pytest.raises(BundleError, match=message):
        open_source(tmp_path / "m.safetensors")


def test_a_file_of_another_name_is_not_unpickled(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers goes by the name: of a .ckpt it takes what lies inside for pickled, which a file can be as well."""
    path = write_original(families.pipeline("sd15"), tmp_path / "sd.safetensors", "sd1").rename(tmp_path / "sd.ckpt")
    loaded: list[object] = []
    monkeypatch.setattr(torch, "load", lambda *args, **more: loaded.append(args))
    source = SingleFile(path, sources / "sd15")
    assert source.reference("unet").config.in_channels == 4
    assert loaded == []
    (note,) = source.notes()
    assert note.startswith("unet: diffusers' from_single_file cannot read it from this file (ValueError)")
