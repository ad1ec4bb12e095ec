"""diffusers folder -> bundle: what is written, and what is refused with nothing left behind."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import edgediff
from edgediff import ArgumentError, BundleError, BundleNotFoundError, EngineError, OutputError
from edgediff.bundle.reading import read_bundle
from edgediff.bundle.scheduler_config import schedule_of
from edgediff.generation.arguments import Arguments
from edgediff.generation.request import plan_for
from edgediff_export.convert import export
from edgediff_export.onnx_graph import graph as graphs
from edgediff_export.precision.precisions import PRECISIONS


@pytest.fixture
def source(tiny_source: Path, tmp_path: Path) -> Path:
    """A copy of the tiny pipeline, to break."""
    return Path(shutil.copytree(tiny_source, tmp_path / "source"))


def nothing_left(folder: Path) -> bool:
    return [p.name for p in folder.iterdir()] == ["source"]


def test_manifest(tiny_bundle: Path) -> None:
    found = read_bundle(tiny_bundle)
    assert found.name == "tiny"
    assert found.schedule == edgediff.Schedule(
        beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False, timestep_spacing="leading"
    )
    assert (found.latent.channels, found.latent.factor, found.latent.size_multiple) == (4, 4, 4)
    assert found.latent.scale == pytest.approx(0.18215)
    assert (found.defaults.width, found.defaults.height, found.defaults.sampler) == (32, 32, "plms")
    assert [t.name for t in found.parts["unet"].inputs] == ["sample", "timestep", "encoder_hidden_states"]
    assert found.parts["vae_decoder"].outputs[0].shape == ("batch", 3, "height", "width")
    assert list(found.parts) == ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
    assert set(found.parity) == {*found.parts, "preview_r2", "pictures"}
    assert all(found.parity[p]["relative"] < 1e-4 for p in found.parts)
    assert not [p for p in tiny_bundle.iterdir() if p.name.startswith((".", "tmp"))]


def test_a_slow_tokenizer_in_the_index(source: Path, tiny_bundle: Path) -> None:
    """What the folders of SD 1.5 and 2.1 name."""
    edit(source / "model_index.json", lambda d: d.update(tokenizer=["transformers", "CLIPTokenizer"]))
    out = export(source, source.parent / "out", precision="fp32")
    tokens = [edgediff.load(root)._open_tokenizers()[0].tokens("a red apple, naïve") for root in (out, tiny_bundle)]
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) >= 5


def test_fp16_weights(wide_source: Path, tmp_path: Path) -> None:
    half, whole = export(wide_source, tmp_path / "half"), export(wide_source, tmp_path / "whole", precision="fp32")
    sizes = [(root / "unet.onnx").stat().st_size for root in (half, whole)]
    assert sizes[0] < 0.65 * sizes[1]  # the graph itself does not shrink
    a = edgediff.load(half, threads=1)("a cat", seed=0, num_inference_steps=4).latents
    b = edgediff.load(whole, threads=1)("a cat", seed=0, num_inference_steps=4).latents
    assert 0 < np.linalg.norm(a - b) / np.linalg.norm(b) < 1e-2


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae", "scheduler", "tokenizer"])
def test_a_missing_part(source: Path, part: str) -> None:
    shutil.rmtree(source / part)
    with pytest.raises(BundleNotFoundError, match=f"part {part} is missing"):
        export(source, source.parent / "out")
    assert nothing_left(source.parent)


def edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def test_other_bad_sources(source: Path) -> None:
    out = source.parent / "out"
    with pytest.raises(BundleNotFoundError, match=r"no model_index\.json"):
        export(source.parent / "nowhere", out)
    scheduler = source / "scheduler" / "scheduler_config.json"
    edit(scheduler, lambda d: d.update(trained_betas=[0.1]))
    with pytest.raises(BundleError, match=r"scheduler: trained_betas is \[0\.1\]"):
        export(source, out)
    edit(scheduler, lambda d: d.update(trained_betas=None, prediction_type="sigma"))
    with pytest.raises(BundleError, match="no prediction_type 'sigma'; choose from epsilon"):
        export(source, out)
    edit(scheduler, lambda d: d.update(beta_schedule="cubic"))
    with pytest.raises(BundleError, match="scheduler cannot be loaded: cubic"):
        export(source, out)
    edit(source / "model_index.json", lambda d: d.update(_class_name="FluxPipeline"))
    with pytest.raises(BundleError, match="is a 'FluxPipeline'"):
        export(source, out)
    (source / "model_index.json").write_text("{", encoding="utf-8")
    with pytest.raises(BundleError, match="is not JSON"):
        export(source, out)
    assert nothing_left(source.parent)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_beta_sigmas": True}, "use_beta_sigmas is True"),
        ({"final_sigmas_type": "sigma_min"}, "it takes 'zero'"),
        ({"sigma_max": 30.0}, "sigma_max is 30"),
        ({"beta_start": None}, "has no beta_start"),
        ({"trained_betas": [0.1] * 1000}, r"trained_betas is \[0\.1, 0\.1, 0\.1, \.\.\.\] \(1000 values\), which"),
    ],
)
def test_scheduler_settings_that_are_refused(change: dict[str, object], message: str) -> None:
    from diffusers import DPMSolverMultistepScheduler

    plain = dict(DPMSolverMultistepScheduler().config)
    assert schedule_of(plain)["beta_schedule"] == "linear"
    with pytest.raises(BundleError, match=message):
        schedule_of(plain | change)


@pytest.mark.parametrize(
    "name",
    [
        "EDMEulerScheduler",
        "EDMDPMSolverMultistepScheduler",
        "CMStochasticIterativeScheduler",
        "CosineDPMSolverMultistepScheduler",
        "FlowMatchEulerDiscreteScheduler",
    ],
)
def test_schedulers_that_are_refused_by_name(name: str) -> None:
    import diffusers

    config = {**getattr(diffusers, name)().config, "_class_name": name}
    with pytest.raises(BundleError, match=f"scheduler: {name} has no .* schedule of betas.* choose from DDIMScheduler"):
        schedule_of(config)


def test_a_ddim_pipeline_makes_ddim_of_any_scheduler(tmp_path: Path) -> None:
    from diffusers import DDPMScheduler

    from ..support.families import make

    source = make("pixel-ddim", tmp_path / "source")
    DDPMScheduler(beta_schedule="linear").save_pretrained(source / "scheduler")
    edit(source / "model_index.json", lambda d: d.update(scheduler=["diffusers", "DDPMScheduler"]))
    found = read_bundle(export(source, tmp_path / "out", precision="fp32"))
    assert found.defaults.sampler == "ddim"
    assert found.parity["pictures"]["reference"]["scheduler"] == "DDIMScheduler"


def test_scheduler_of_a_folder_picks_sampler_and_spacing(source: Path) -> None:
    """DPM++ 2M SDE Karras with zero terminal SNR, as a pipeline saves it; what has no twin falls back, and says so."""
    from diffusers import DPMSolverMultistepScheduler

    said: list[str] = []
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", use_karras_sigmas=True, prediction_type="v_prediction"
    )
    scheduler.save_pretrained(source / "scheduler")
    edit(source / "model_index.json", lambda d: d.update(scheduler=["diffusers", "DPMSolverMultistepScheduler"]))
    found = read_bundle(export(source, source.parent / "a", precision="fp32", report=said.append))
    assert (found.defaults.sampler, found.schedule.sigma_spacing) == ("dpmpp_2m_sde", "karras")
    assert found.schedule.timestep_spacing == "linspace"
    assert (plan_for(found, Arguments()).sampler, plan_for(found, Arguments()).spacing) == ("dpmpp_2m_sde", "karras")
    assert not [line for line in said if "no twin" in line]
    scheduler = DPMSolverMultistepScheduler(
        solver_order=3, rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    scheduler.save_pretrained(source / "scheduler")
    found = read_bundle(export(source, source.parent / "b", precision="fp32", report=said.append))
    assert found.defaults.sampler == "ddim"
    assert plan_for(found, Arguments()).levels[0].alpha == 0
    assert [line for line in said if "no twin here; the bundle's default sampler is ddim" in line]


def test_weights_that_are_not_finite(source: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = source / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["conv_out.bias"][0] = torch.nan
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(BundleError, match=r"unet has weights that are not finite, first in conv_out\.bias"):
        export(source, source.parent / "out")
    assert nothing_left(source.parent)


def test_bad_output_and_precision(tiny_source: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="no precision 'int3'; choose from fp32"):
        export(tiny_source, tmp_path / "out", precision="int3")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="is not an empty folder"):
        export(tiny_source, tmp_path / "full")
    with pytest.raises(OutputError, match="cannot write /proc/out"):
        export(tiny_source, "/proc/out")


def test_a_part_that_differs_fails_the_export(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRECISIONS, "fp16-weights", dataclasses.replace(PRECISIONS["fp16-weights"], ceiling=1e-9))
    with pytest.raises(EngineError, match="text_encoder: fp16-weights differs from torch by"):
        export(tiny_source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_without_onnxruntime_before_any_work(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineError, match="parity check needs ONNX Runtime"):
        export(tiny_source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_large_weights_go_beside_the_graph(
    tiny_source: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "DATA_LIMIT", 1000)
    out = export(tiny_source, tmp_path / "out", precision="fp32")
    found = read_bundle(out)
    assert [f.engine for f in found.parts["unet"].files] == ["onnx", "onnx-data"]
    a, b = (edgediff.load(root, threads=1)("a cat", seed=0, num_inference_steps=2) for root in (out, tiny_bundle))
    np.testing.assert_array_equal(a.latents, b.latents)
    data = out / "unet.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"unet\.onnx\.data has"):
        edgediff.load(out).engine("unet")


def test_command(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "edgediff_export", "nowhere", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.endswith("edgediff: no diffusers model at nowhere: it has no model_index.json\n")


def test_lora_is_merged(tiny_source: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    """Against diffusers with the same file loaded; the manifest does not change the model's own weights."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from safetensors.torch import save_file

    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    torch.manual_seed(3)
    layers = {
        f"unet.{name}.lora_A.weight": torch.randn(4, 8),
        f"unet.{name}.lora_B.weight": torch.randn(8, 4),
        "text_encoder.text_model.encoder.layers.0.self_attn.v_proj.lora_A.weight": torch.randn(4, 32),
        "text_encoder.text_model.encoder.layers.0.self_attn.v_proj.lora_B.weight": torch.randn(32, 4),
    }
    save_file(layers, tmp_path / "style.safetensors")
    out = export(tiny_source, tmp_path / "out", precision="fp32", loras=[(tmp_path / "style.safetensors", 0.5)])
    theirs = StableDiffusionPipeline.from_pretrained(str(tiny_source), safety_checker=None)
    theirs.set_progress_bar_config(disable=True)
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config, clip_sample=False)
    theirs.load_lora_weights(str(tmp_path), weight_name="style.safetensors")
    theirs.fuse_lora(lora_scale=0.5)
    arguments = {"prompt": "a red cat", "num_inference_steps": 4, "guidance_scale": 5.0}
    generator = torch.Generator().manual_seed(1)
    expected = theirs(**arguments, generator=generator, output_type="latent").images.detach().numpy()
    found, plain = (edgediff.load(r)(**arguments, seed=1, sampler="ddim").latents for r in (out, tiny_bundle))
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert np.abs(found - plain).max() > 0.05
    lost = {"unet.no.such.lora_A.weight": torch.zeros(4, 32), "unet.no.such.lora_B.weight": torch.zeros(32, 4)}
    save_file(lost, tmp_path / "other.safetensors")
    with pytest.raises(ArgumentError, match="1 of its 1 layers are not in the model"):
        export(tiny_source, tmp_path / "b", loras=[(tmp_path / "other.safetensors", 1.0)])
    assert not (tmp_path / "b").exists()


def test_embeddings_travel_in_the_bundle(tiny_source: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    learned = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    save_file({"emb_params": learned}, tmp_path / "dotty.safetensors")
    given = [(None, tmp_path / "dotty.safetensors"), ("striped", tmp_path / "dotty.safetensors")]
    out = export(tiny_source, tmp_path / "out", precision="fp32", embeddings=given)
    assert [w.word for w in read_bundle(out).embeddings] == ["dotty", "striped"]
    loaded = edgediff.load(tiny_bundle)
    loaded.load_textual_inversion(tmp_path / "dotty.safetensors")
    latents = [pipe("a dotty cat", seed=0, num_inference_steps=2).latents for pipe in (edgediff.load(out), loaded)]
    np.testing.assert_array_equal(*latents)
    with pytest.raises(ArgumentError, match="two embeddings are named 'dotty'"):
        export(tiny_source, tmp_path / "b", embeddings=[given[0], given[0]])
    save_file({"emb_params": learned[:, :8]}, tmp_path / "narrow.safetensors")
    with pytest.raises(ArgumentError, match="has width 8; this model's text encoder has 32"):
        export(tiny_source, tmp_path / "b", embeddings=[(None, tmp_path / "narrow.safetensors")])
    assert not (tmp_path / "b").exists()


def test_other_autoencoders(tiny_source: Path, tmp_path: Path) -> None:
    """A tiny one as the decoder, and as a second one for previews."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    widths = (16, 16, 16)
    blocks = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
    small = AutoencoderTiny(encoder_block_out_channels=widths, decoder_block_out_channels=widths, **blocks).eval()
    small.save_pretrained(tmp_path / "taesd")
    out = export(tiny_source, tmp_path / "a", precision="fp32", vae=tmp_path / "taesd")
    bundle = read_bundle(out)
    assert bundle.latent.scale == 1.0
    assert [t.name for t in bundle.parts["vae_encoder"].outputs] == ["latent_mean"]
    result = edgediff.load(out)("a cat", seed=0, num_inference_steps=2, output_type="np")
    with torch.no_grad():
        expected = small.decode(torch.from_numpy(result.latents)).sample
    expected = ((expected / 2 + 0.5).clamp(0, 1) * 255).round().numpy().astype(np.uint8).transpose(0, 2, 3, 1)
    assert np.abs(result.images.astype(int) - expected).max() <= 1
    pipe = edgediff.load(export(tiny_source, tmp_path / "b", precision="fp32", preview_decoder=tmp_path / "taesd"))
    assert list(pipe.bundle.parts)[-1] == "preview_decoder"
    step = next(iter(pipe.stream("a cat", seed=0, num_inference_steps=2)))
    auto, tiny, matrix = (np.asarray(step.preview(how)[0]) for how in (None, "decoder", "matrix"))
    assert np.array_equal(auto, tiny)
    assert auto.shape == matrix.shape == (32, 32, 3)
    assert not np.array_equal(auto, matrix)
    with pytest.raises(ArgumentError, match="no preview 'best'; choose from decoder, matrix"):
        step.preview("best")
    with pytest.raises(BundleError, match=r"unet is a 'UNet2DConditionModel'; here it must be one of Auto"):
        export(tiny_source, tmp_path / "c", vae=tiny_source / "unet")
    with pytest.raises(BundleNotFoundError, match=r"no model at .*: it has no config\.json"):
        export(tiny_source, tmp_path / "c", preview_decoder=tmp_path)


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"sampler": "nonsense"}, "no sampler 'nonsense'"),
        ({"width": 33}, "the default width is 33; it must be a multiple of 4"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"steps": 3}, "no default 'steps'; choose from width, height"),
    ],
)
def test_defaults_are_checked_before_any_work(source: Path, defaults: dict[str, object], message: str) -> None:
    said: list[str] = []
    with pytest.raises(ArgumentError, match=message):
        export(source, source.parent / "out", defaults=defaults, report=said.append)
    assert said == []
    assert nothing_left(source.parent)


def test_settings_that_the_scheduler_does_not_take_are_ignored(source: Path) -> None:
    """Saved configs keep what the classes before them were told."""
    from diffusers import EulerDiscreteScheduler

    from edgediff_export.sources.folder import Folder

    EulerDiscreteScheduler(beta_schedule="scaled_linear").save_pretrained(source / "scheduler")
    edit(source / "scheduler" / "scheduler_config.json", lambda d: d.update(thresholding=True, clip_sample=True))
    edit(source / "model_index.json", lambda d: d.update(scheduler=["diffusers", "EulerDiscreteScheduler"]))
    config = Folder(source).scheduler()
    assert "thresholding" not in config
    assert config["timestep_spacing"] == "linspace"
    assert schedule_of(config)["beta_schedule"] == "scaled_linear"


def test_half_files_and_files_of_others_beside_them(source: Path, tiny_source: Path) -> None:
    """As hubs have them: fp16 alone, in pieces, next to files of other programs."""
    from diffusers import UNet2DConditionModel

    from edgediff_export.sources.folder import Folder

    unet = UNet2DConditionModel.from_pretrained(tiny_source / "unet")
    (source / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    unet.save_pretrained(source / "unet", variant="fp16", max_shard_size="100KB")
    (source / "unet" / "openvino_model.bin").write_bytes(b"another program's")
    assert len(list((source / "unet").glob("*fp16*.safetensors"))) > 2
    found = Folder(source).reference("unet", wide=True).state_dict()
    assert all(torch.equal(v, found[k]) for k, v in unet.state_dict().items())


def test_malformed_indexes(source: Path) -> None:
    index = source / "model_index.json"
    whole = index.read_text(encoding="utf-8")
    edit(index, lambda d: d.update(scheduler=[None, None]))
    with pytest.raises(BundleError, match=r"scheduler is \[None, None\]; it must be \[library, class\]"):
        export(source, source.parent / "out")
    index.write_text("[]", encoding="utf-8")
    with pytest.raises(BundleError, match="holds list, not an object"):
        export(source, source.parent / "out")
    index.write_text(whole, encoding="utf-8")
    edit(index, lambda d: d.update(unet=["diffusers", "UNet3DConditionModel"]))
    with pytest.raises(BundleError, match="unet is a 'UNet3DConditionModel'; this version exports UNet2DCondition"):
        export(source, source.parent / "out")
    assert nothing_left(source.parent)


def test_where_nothing_can_be_put(tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="the folder in which this runs; name a new one"):
        export(tiny_source, ".")
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with pytest.raises(OutputError, match="it is a link"):
        export(tiny_source, "link")


def test_a_carried_word_of_the_golden_prompts(tiny_source: Path, tmp_path: Path) -> None:
    """Torch draws without it, so the proof does too."""
    from safetensors.numpy import save_file

    from edgediff.verify import prove

    save_file({"emb_params": np.full((1, 32), 3.0, np.float32)}, tmp_path / "horse.safetensors")
    out = export(tiny_source, tmp_path / "m-1.0", precision="fp32", embeddings=[(None, tmp_path / "horse.safetensors")])
    pipe = edgediff.load(out)
    assert pipe._textual_inversions().ids == {"horse": (-1,)}
    assert all(f.ok for f in prove(pipe))
    assert pipe._textual_inversions().ids == {"horse": (-1,)}
