"""The proof: what diffusers draws it from, what it says, and the ways past a floor that are said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSDEScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from safetensors.torch import load_file, save_file

import edgediff
from edgediff import ArgumentError, BundleError, EngineError, OutputError
from edgediff.bundle.reading import read_bundle
from edgediff.verify import prove
from edgediff_export.convert import export
from edgediff_export.manifest import model_facts
from edgediff_export.precision import precisions
from edgediff_export.proof.replay import LIMIT
from edgediff_export.proof.twins import find_twin
from edgediff_export.sources.folder import Folder
from edgediff_export.sources.loading import load_module
from edgediff_export.workspace import Workspace

from ..support import families
from ..support.original_layout import write_original
from .test_mutations import against_diffusers

ZERO_SNR: dict[str, Any] = {
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}


def reference_of(root: Path) -> dict[str, Any]:
    return dict(read_bundle(root).parity["pictures"]["reference"])


# The reference.


@pytest.mark.parametrize("family", ["sd15", "sdxl-refiner", "inpaint", "pixel-ddim", "taesd", "sdxl-lcm"])
def test_the_bundle_says_who_drew(family_bundle: Callable[[str], Path], family: str) -> None:
    root = family_bundle(family)
    index = json.loads((root.parent / "source" / "model_index.json").read_text(encoding="utf-8"))
    found = reference_of(root)
    assert (found["pipeline"], found["scheduler"]) == (index["_class_name"], index["scheduler"][1])
    assert found["asked"] <= LIMIT
    assert "notes" not in found
    assert min(read_bundle(root).parity["pictures"]["psnr"]) >= 60
    assert all(finding.ok for finding in prove(edgediff.load(root, threads=1)))


def test_golden_calls_have_a_negative_prompt_once(family_bundle: Callable[[str], Path]) -> None:
    golden = read_bundle(family_bundle("sdxl")).golden
    assert golden is not None
    assert ["negative_prompt" in call for call in golden.pictures] == [False, True]
    embedded = read_bundle(family_bundle("lcm")).golden
    assert embedded is not None
    assert not any("negative_prompt" in call for call in embedded.pictures)


@pytest.mark.parametrize("cls", [StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline])
def test_pipelines_that_start_from_a_picture(tmp_path: Path, cls: Any) -> None:
    """Their U-Nets read latents alone; the noise of an ancestral scheduler follows the start."""
    one = families.pipeline("sd15")
    one.scheduler = EulerAncestralDiscreteScheduler(**families.BETAS, steps_offset=1, timestep_spacing="leading")
    cls(**one.components, requires_safety_checker=False).save_pretrained(tmp_path / "source")
    found = reference_of(export(tmp_path / "source", tmp_path / "out", precision="fp32"))
    assert (found["pipeline"], found["scheduler"]) == (cls.__name__, "EulerAncestralDiscreteScheduler")


@pytest.mark.parametrize(
    ("scheduler", "sampler", "drawn", "note"),
    [
        (DPMSolverSDEScheduler(**families.BETAS), None, "DPMSolverSDEScheduler", ""),
        (
            DPMSolverMultistepScheduler(**families.BETAS, use_karras_sigmas=True),
            None,
            "DPMSolverMultistepScheduler",
            "",
        ),
        (DPMSolverMultistepScheduler(**families.BETAS, solver_order=3), None, "EulerDiscreteScheduler", "linspace"),
        (DEISMultistepScheduler(**families.BETAS, use_karras_sigmas=True), None, "EulerDiscreteScheduler", "karras"),
        (EulerAncestralDiscreteScheduler(**families.BETAS, **ZERO_SNR), None, "DDIMScheduler", "trailing"),
        (
            PNDMScheduler(**families.BETAS, skip_prk_steps=True, steps_offset=1, prediction_type="v_prediction"),
            None,
            "EulerDiscreteScheduler",
            "leading",
        ),
        (DDIMScheduler(**families.BETAS, clip_sample=False), "dpmpp_3m_sde", "EulerDiscreteScheduler", "leading"),
        (
            DDIMScheduler(**families.BETAS, clip_sample=False),
            "DPM++ 2M Karras",
            "DPMSolverMultistepScheduler",
            "karras",
        ),
    ],
)
def test_a_scheduler_that_is_no_reference_is_said(
    tiny_source: Path, tmp_path: Path, scheduler: Any, sampler: str | None, drawn: str, note: str
) -> None:
    source = Path(shutil.copytree(tiny_source, tmp_path / "source"))
    scheduler.save_pretrained(source / "scheduler")
    index = source / "model_index.json"
    text = json.loads(index.read_text(encoding="utf-8")) | {"scheduler": ["diffusers", type(scheduler).__name__]}
    index.write_text(json.dumps(text), encoding="utf-8")
    defaults = {} if sampler is None else {"sampler": sampler}
    twin = find_twin(Folder(source), model_facts(Folder(source), defaults))
    assert type(twin.scheduler).__name__ == drawn
    assert bool(twin.call) or sampler == "DPM++ 2M Karras" or not note
    assert (f"{drawn}, {note}, not with the source's {type(scheduler).__name__}" in twin.note) == bool(note)
    said: list[str] = []
    found = reference_of(export(source, tmp_path / "out", precision="fp32", defaults=defaults, report=said.append))
    assert found.get("notes", []) == ([twin.note] if note else [])
    assert [line for line in said if line == twin.note] == found.get("notes", [])
    assert found["asked"] <= LIMIT


@pytest.mark.parametrize(
    ("scheduler", "drawn"),
    [
        (DPMSolverSinglestepScheduler(**families.BETAS), "DDIMScheduler"),  # StableDiffusionPipeline sets its offset
        (UniPCMultistepScheduler(**families.BETAS, lower_order_final=False), "EulerDiscreteScheduler"),  # NaN there
    ],
)
def test_schedulers_that_diffusers_runs_otherwise(
    tiny_source: Path, tmp_path: Path, scheduler: Any, drawn: str
) -> None:
    source = Path(shutil.copytree(tiny_source, tmp_path / "source"))
    scheduler.save_pretrained(source / "scheduler")
    index = source / "model_index.json"
    text = json.loads(index.read_text(encoding="utf-8")) | {"scheduler": ["diffusers", type(scheduler).__name__]}
    index.write_text(json.dumps(text), encoding="utf-8")
    bundle = export(source, tmp_path / "out", precision="fp32")
    found = reference_of(bundle)
    assert found["scheduler"] == drawn
    assert found["asked"] <= LIMIT
    assert np.isfinite(edgediff.load(bundle, threads=1)("a", num_inference_steps=4, seed=1).latents).all()


def test_half_precision_computes_in_float32(tmp_path: Path) -> None:
    """Weights stay as the file has them, and outputs are those of the module in float32, to the bit."""
    for cls, model in (
        ("UNet2DConditionModel", families.unet(8, 16)),
        ("AutoencoderKL", families.pipeline("sd15").vae),
    ):
        model.half().save_pretrained(tmp_path / cls)
        wide = load_module(tmp_path / cls, cls, "part")
        narrow = load_module(tmp_path / cls, cls, "part", wide=False)
        assert {p.dtype for p in wide.parameters()} == {torch.float32}
        assert {p.dtype for p in narrow.parameters()} == {torch.float16}
        assert narrow.dtype == torch.float32
        x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            if cls == "AutoencoderKL":
                outs = [m.decode(x, return_dict=False)[0] for m in (wide, narrow)]
            else:
                outs = [m(x, 3, torch.ones(1, 5, 16), return_dict=False)[0] for m in (wide, narrow)]
        assert torch.equal(*outs)
        assert {p.dtype for p in narrow.parameters()} == {torch.float16}


def test_a_half_single_file_and_a_layout_of_its_own(tmp_path: Path) -> None:
    """diffusers reads the first itself; of the second it does not know the text encoder's names, and that is said."""
    config = families.make("sd15", tmp_path / "config")
    one = write_original(families.pipeline("sd15"), tmp_path / "a.safetensors", "sd1", dtype=torch.float16)
    assert "notes" not in reference_of(export(one, tmp_path / "a", precision="fp32", config=config))
    inner = "cond_stage_model.transformer."
    early = {name.replace(f"{inner}text_model.", inner): tensor for name, tensor in load_file(one).items()}
    save_file(early, tmp_path / "b.safetensors")
    found = reference_of(export(tmp_path / "b.safetensors", tmp_path / "b", precision="fp32", config=config))
    assert "text_encoder: diffusers' from_single_file cannot read it" in found["notes"][0]


# Floors.


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that amplifies rounding falls below the floor in fp32; here the floor comes up to one that does not."""
    import dataclasses

    monkeypatch.setitem(precisions.PRECISIONS, "fp32", dataclasses.replace(precisions.PRECISIONS["fp32"], floor=99.5))


@pytest.mark.usefixtures("strict")
def test_a_floor_that_is_asked_for(tiny_source: Path, tmp_path: Path) -> None:
    with pytest.raises(
        EngineError, match=r"below the floor of 99\.5 dB.*this model amplifies rounding itself; --floor 99 "
    ):
        export(tiny_source, tmp_path / "out", precision="fp32")
    said: list[str] = []
    root = export(tiny_source, tmp_path / "out", precision="fp32", floor=50, report=said.append)
    bundle = read_bundle(root)
    assert bundle.golden is not None
    assert bundle.golden.floor == 50
    assert (bundle.parity["pictures"]["floor"], bundle.parity["pictures"]["floor_of_precision"]) == (50, 99.5)
    assert "WARNING: the floor is 50 dB, as asked; this precision's is 99.5 dB" in said


@pytest.mark.parametrize("floor", [5, 100, float("nan"), "40"])
def test_floors_that_are_none(tiny_source: Path, tmp_path: Path, floor: Any) -> None:
    with pytest.raises(ArgumentError, match=r"floor is .*; it must be a number of dB, 10 \.\. 99"):
        export(tiny_source, tmp_path / "out", floor=floor)
    assert list(tmp_path.iterdir()) == []


# What differs from diffusers by name, or is refused.


def test_a_shift_has_a_name_of_its_own(tmp_path: Path) -> None:
    source = families.make("sd15", tmp_path / "source")
    path = source / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {"shift_factor": 0.6}), encoding="utf-8")
    said: list[str] = []
    plain = export(source, tmp_path / "a", precision="fp32", report=said.append)
    assert read_bundle(plain).latent.shift == 0
    assert against_diffusers(source, plain) < 1e-3
    assert "vae: its shift_factor, 0.6, is not used, as diffusers' StableDiffusionPipeline does not" in "\n".join(said)
    shifted = export(source, tmp_path / "b", precision="fp32", vae_shift=True)
    assert read_bundle(shifted).latent.shift == pytest.approx(0.6)

    def shift(pipe: Any) -> None:
        decode = pipe.vae.decode
        pipe.vae.decode = lambda z, **more: decode(z + 0.6, **more)

    assert against_diffusers(source, shifted, shift) < 1e-3
    assert against_diffusers(source, shifted) > 5e-3
    assert all(finding.ok for finding in prove(edgediff.load(shifted, threads=1)))


def test_a_shift_that_is_not_there(tiny_source: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="vae_shift is True, and the autoencoder's shift_factor is None"):
        export(tiny_source, tmp_path / "out", vae_shift=True)
    pixels = families.make("pixel", tmp_path / "pixels")
    with pytest.raises(ArgumentError, match="vae_shift is True, and a model of pixels has no autoencoder"):
        export(pixels, tmp_path / "out", vae_shift=True)


def test_an_autoencoder_of_one_level(tiny_source: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_source, tmp_path / "source"))
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, sample_size=8).save_pretrained(source / "vae")
    with pytest.raises(BundleError, match=r"vae: block_out_channels is \[8\], one level"):
        export(source, tmp_path / "out")


def test_a_unet_that_reads_no_text(tiny_source: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_source, tmp_path / "source"))
    UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2D",
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=32,
        norm_num_groups=4,
    ).save_pretrained(source / "unet")
    with pytest.raises(
        BundleError, match=r"unet: none of its blocks reads the text \(DownBlock2D, UNetMidBlock2D, UpBl"
    ):
        export(source, tmp_path / "out")


def test_a_single_file_whose_autoencoder_lies_elsewhere(tmp_path: Path) -> None:
    config = families.make("sd15", tmp_path / "config")
    whole = write_original(families.pipeline("sd15"), tmp_path / "whole.safetensors", "sd1")
    save_file(
        {name: t for name, t in load_file(whole).items() if not name.startswith("first_stage_model.")},
        tmp_path / "less.safetensors",
    )
    with pytest.raises(BundleError, match=r"holds no autoencoder \(first_stage_model\.\.\.\.\); give one as --vae"):
        export(tmp_path / "less.safetensors", tmp_path / "out", config=config)
    hashes = [
        {f.path: f.sha256 for name, f in read_bundle(export(path, tmp_path / name, precision="fp32", **more)).files()}
        for name, path, more in (
            ("a", tmp_path / "less.safetensors", {"config": config, "vae": config / "vae"}),
            ("b", tmp_path / "less.safetensors", {"config": config, "vae": whole}),
            ("c", whole, {"config": config}),
        )
    ]
    assert hashes[0] == hashes[1] == hashes[2]


def test_a_folder_of_onnx_graphs(tiny_source: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_source, tmp_path / "source"))
    for part in ("text_encoder", "unet"):
        for path in (source / part).glob("*.safetensors"):
            path.rename(path.with_name("model.onnx"))
    (source / "vae").rename(source / "vae_decoder")
    for path in (source / "vae_decoder").glob("*.safetensors"):
        path.rename(path.with_name("model.onnx"))
    with pytest.raises(BundleError, match=r"holds ONNX graphs \(text_encoder/model\.onnx\) and no weights of torch"):
        export(source, tmp_path / "out")


def test_a_component_without_weights(tiny_source: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_source, tmp_path / "source"))
    (source / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(BundleError, match=r"unet holds no weights \(diffusion_pytorch_model\.safetensors"):
        export(source, tmp_path / "out")


# Errors that come again.


@pytest.mark.parametrize("error", [RuntimeError("no operator"), PermissionError(13, "Permission denied")])
def test_an_error_that_will_come_again_does_not_advise_to_run_again(tmp_path: Path, error: Exception) -> None:
    workspace = Workspace(tmp_path / "out", "key")
    kind = OutputError if isinstance(error, OSError) else EngineError
    with pytest.raises(kind, match=str(error.args[-1])) as caught, workspace.open():  # noqa: PT012
        (workspace.bundle / "a.onnx").write_bytes(b"a")
        workspace.finish("a step", {}, [workspace.bundle / "a.onnx"])
        raise error
    assert "again" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_does(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "out", "key")
    with pytest.raises(OutputError, match="run again to go on, or delete it"), workspace.open():  # noqa: PT012
        (workspace.bundle / "a.onnx").write_bytes(b"a")
        workspace.finish("a step", {}, [workspace.bundle / "a.onnx"])
        raise OSError(28, "No space left on device")
    assert [p.name for p in tmp_path.iterdir()] == [".out.partial"]
