"""What is wrong in a source, or in what the exporter makes of it, is refused, or the bundle draws what diffusers draws.

Nothing is let through: every case here is one way to be wrong, at toy width.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

import edgediff
from edgediff import BundleError, EdgediffError, EngineError
from edgediff_export.convert import export
from edgediff_export.job import ExportJob
from edgediff_export.manifest import model_facts
from edgediff_export.onnx_graph.recipes import PartRecipe, recipes_of
from edgediff_export.precision.precisions import prove_fp32
from edgediff_export.precision.session import OpenGraph
from edgediff_export.progress import Progress
from edgediff_export.proof.golden import picture_arguments, picture_arrays
from edgediff_export.proof.reference import Reference, draw_by_diffusers
from edgediff_export.proof.replay import replay
from edgediff_export.proof.twins import find_twin
from edgediff_export.proving import draft_bundle, draw_reference
from edgediff_export.sources.folder import Folder
from edgediff_export.stages import trace_part, write_tokenizers
from edgediff_export.workspace import Workspace

from ..support import families
from ..support.original_layout import write_original

Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]
PROMPT, NEGATIVE = "a red apple on a blue background", "a green pear"
TOLERANCE = 1e-3  # relative to the largest value of the latents
WEIGHTS = {"text_encoder": "model.safetensors"}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a family. Read-only."""
    root = tmp_path_factory.mktemp("sources")

    def find(name: str) -> Path:
        return root / name if (root / name).exists() else families.make(name, root / name)

    return find


# 1. Files that do not hold what their config says: refused by name, before any work.


def without(*endings: str) -> Callable[[Tensors], object]:
    return lambda w: [w.pop(name) for name in list(w) if name.endswith(endings)]


def renamed(old: str, new: str) -> Callable[[Tensors], object]:
    return lambda w: w.update({name.replace(old, new): w.pop(name) for name in list(w) if old in name})


FILES: dict[str, tuple[str, Callable[[Tensors], object], str]] = {
    "last norm": ("text_encoder", without("final_layer_norm.weight", "final_layer_norm.bias"), "lacks 2 of the"),
    "one norm": ("text_encoder", without("layers.0.layer_norm1.weight"), r"first .*layers\.0\.layer_norm1\.weight"),
    "all biases": ("text_encoder", without(".bias"), r"lacks \d\d of the"),
    "a matrix": ("text_encoder", without("layers.1.mlp.fc1.weight"), "lacks 1 of the"),
    "position table": ("text_encoder", without("position_embedding.weight"), "lacks 1 of the"),
    "a layer more": (
        "text_encoder",
        lambda w: w.update({n.replace("layers.0.", "layers.7."): t.clone() for n, t in w.items() if "layers.0." in n}),
        "16 tensors that its config has no place for",
    ),
    "U-Net bias": ("unet", without("conv_out.bias"), r"lacks 1 of the .* first conv_out\.bias"),
    "U-Net norm": ("unet", without("mid_block.resnets.0.norm1.weight"), "lacks 1 of the"),
    "U-Net attention": ("unet", without("attn2.to_k.weight"), r"first .*attn2\.to_k\.weight"),
    "other U-Net": ("unet", lambda w: w.update(added=torch.ones(2)), "1 tensors that its config has no place for"),
    "narrow U-Net": (
        "unet",
        lambda w: w.update({"conv_out.bias": torch.ones(3)}),
        r"conv_out\.bias has shape \(3,\), its config asks for \(4,\)",
    ),
    "unfused LoRA": (
        "unet",
        renamed("attn1.to_q.weight", "attn1.to_q.base_layer.weight"),
        r"a LoRA that is not fused .* call pipe\.fuse_lora\(\)",
    ),
    "VAE weight": ("vae", without("post_quant_conv.weight"), r"first post_quant_conv\.weight"),
    "VAE norm": ("vae", without("decoder.conv_norm_out.bias"), "lacks 1 of the"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_do_not_fit(sources: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    component, change, message = FILES[name]
    source = Path(shutil.copytree(sources("sd15"), tmp_path / "source"))
    path = source / component / WEIGHTS.get(component, "diffusion_pytorch_model.safetensors")
    weights = load_file(path)
    change(weights)
    save_file(weights, path, {"format": "pt"})
    said: list[str] = []
    with pytest.raises(BundleError, match=message) as caught:
        export(source, tmp_path / "out", report=said.append)
    assert component in str(caught.value)
    assert "run again" not in str(caught.value)
    assert said == []
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("text_model.final_layer_norm.bias"), "text_encoder lacks 1 weights"),
        (without("first_stage_model.decoder.norm_out.bias"), "vae lacks 1 weights"),
        (without("model.diffusion_model.out.2.bias"), "unet lacks 1 weights"),
        (lambda w: w.update({"first_stage_model.more": torch.ones(2)}), "vae: 1 weights have no place"),
        (
            lambda w: w.update({"cond_stage_model.transformer.text_model.encoder.layers.9.more": torch.ones(2)}),
            "text_encoder: 1 weights have no place",
        ),
    ],
)
def test_single_files_that_do_not_fit(
    sources: Callable[[str], Path], tmp_path: Path, change: Callable[[Tensors], object], message: str
) -> None:
    path = write_original(families.pipeline("sd15"), tmp_path / "m.safetensors", "sd1")
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    with pytest.raises(BundleError, match=message):
        export(path, tmp_path / "out", config=sources("sd15"))


# 2. Settings of the source: the bundle draws what diffusers' own pipeline then draws, or the export is refused.


SETTINGS: dict[str, tuple[str, Config]] = {
    "U-Net's activation": ("unet", {"act_fn": "gelu"}),
    "U-Net's eps": ("unet", {"norm_eps": 0.1}),
    "U-Net's groups": ("unet", {"norm_num_groups": 4}),
    "sine before cosine": ("unet", {"flip_sin_to_cos": False}),
    "frequencies' shift": ("unet", {"freq_shift": 1}),
    "centred sample": ("unet", {"center_input_sample": True}),
    "heads": ("unet", {"attention_head_dim": 4}),
    "scale of the middle": ("unet", {"mid_block_scale_factor": 2}),
    "scale of resnets": ("unet", {"resnet_out_scale_factor": 2.0}),
    "activation before resnets": ("unet", {"resnet_skip_time_act": True}),
    "activation after the time": ("unet", {"timestep_post_act": "silu"}),
    "text encoder's activation": ("text_encoder", {"hidden_act": "gelu"}),
    "text encoder's eps": ("text_encoder", {"layer_norm_eps": 0.1}),
    "text encoder's heads": ("text_encoder", {"num_attention_heads": 4}),
    "fewer layers": ("text_encoder", {"num_hidden_layers": 2}),
    "attention mask": ("text_encoder", {"use_attention_mask": True}),
    "scaling factor": ("vae", {"scaling_factor": 0.3}),
    "shift factor": ("vae", {"shift_factor": 0.6}),
    "VAE's activation": ("vae", {"act_fn": "gelu"}),
    "latents' mean": ("vae", {"latents_mean": [0.1] * 4, "latents_std": [1.0] * 4}),
    "no attention in the middle": ("vae", {"mid_block_add_attention": False}),
    "alpha to one": ("scheduler", {"set_alpha_to_one": True}),
    "clipping": ("scheduler", {"clip_sample": True}),
    "no offset": ("scheduler", {"steps_offset": 0}),
    "velocity": ("scheduler", {"prediction_type": "v_prediction"}),
    "trailing": ("scheduler", {"timestep_spacing": "trailing"}),
    "betas' end": ("scheduler", {"beta_end": 0.02}),
    "linear betas": ("scheduler", {"beta_schedule": "linear"}),
    "cosine betas": ("scheduler", {"beta_schedule": "squaredcos_cap_v2"}),
    "fewer timesteps": ("scheduler", {"num_train_timesteps": 500}),
    "zero SNR": (
        "scheduler",
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    ),
    "noise that no noise is predicted from": (
        "scheduler",
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ),
    "thresholding": ("scheduler", {"thresholding": True}),
    "betas of its own": ("scheduler", {"trained_betas": [0.001 * (k + 1) for k in range(1000)]}),
}
REFUSED = {
    "fewer layers": "tensors that its config has no place for",
    "attention mask": "use_attention_mask is True",
    "latents' mean": "latents_mean is",
    "no attention in the middle": "tensors that its config has no place for",
    "noise that no noise is predicted from": "timestep 999 is pure noise",
    "thresholding": "thresholding is True",
    "betas of its own": r"trained_betas is \[0\.001, 0\.002, 0\.003, \.\.\.\] \(1000 values\)",
}
CONFIGS = {"scheduler": "scheduler_config.json"}


@pytest.fixture(scope="module")
def plain_bundle(sources: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(sources("sd15"), tmp_path_factory.mktemp("plain") / "bundle", precision="fp32")


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(sources: Callable[[str], Path], plain_bundle: Path, tmp_path: Path, name: str) -> None:
    component, change = SETTINGS[name]
    source = Path(shutil.copytree(sources("sd15"), tmp_path / "source"))
    path = source / component / CONFIGS.get(component, "config.json")
    config = json.loads(path.read_text(encoding="utf-8"))
    assert any(config.get(key) != value for key, value in change.items()), "changes nothing"
    path.write_text(json.dumps(config | change), encoding="utf-8")
    if name in REFUSED:
        with pytest.raises(EdgediffError, match=REFUSED[name]):
            export(source, tmp_path / "out")
        return
    if component == "scheduler":  # the parts stay as they are
        bundle = Path(shutil.copytree(plain_bundle, tmp_path / "out"))
        manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
        facts = {key: value for key, value in model_facts(Folder(source), {}).items() if key not in ("name", "text")}
        (bundle / "bundle.json").write_text(json.dumps(manifest | facts), encoding="utf-8")
    else:
        bundle = export(source, tmp_path / "out", precision="fp32")
    assert against_diffusers(source, bundle) < TOLERANCE


def against_diffusers(source: Path, bundle: Path, change: Callable[[Any], object] = lambda pipe: None) -> float:
    """The largest difference of latents and pixels from those of diffusers, relative to the largest value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = diffusers.DiffusionPipeline.from_pretrained(str(source), local_files_only=True)
    change(theirs)
    theirs.set_progress_bar_config(disable=True)
    arguments: Config = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "num_inference_steps": 4,
        "guidance_scale": 5.0,
        "width": 32,
        "height": 32,
    }
    found = edgediff.load(bundle, threads=1)(**arguments, seed=3, output_type="np")
    errors = []
    for kind, ours in (("latent", found.latents), ("np", found.images / 255)):
        wanted = theirs(**arguments, generator=torch.Generator().manual_seed(3), output_type=kind).images
        wanted = wanted.detach().numpy() if kind == "latent" else wanted
        errors.append(float(np.abs(ours - wanted).max() / np.abs(wanted).max()))
    return max(errors[0], errors[1] - 1 / 255)  # a level of rounding


@pytest.mark.parametrize("alpha", [1.0, 10.0])
def test_alpha_of_a_lora(sources: Callable[[str], Path], tmp_path: Path, alpha: float) -> None:
    """PEFT is the judge: the proof takes the merged weights as they are."""
    source, path = sources("sd15"), tmp_path / "style.safetensors"
    layer = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    torch.manual_seed(5)
    tensors = {f"unet.{layer}.lora_A.weight": torch.randn(4, 16), f"unet.{layer}.lora_B.weight": torch.randn(16, 4)}
    config = {
        f"unet.{key}": value
        for key, value in LoraConfig(r=4, lora_alpha=alpha, target_modules=[layer]).to_dict().items()
    }
    save_file(tensors, path, {"format": "pt", "lora_adapter_metadata": json.dumps(config, default=list)})
    bundle = export(source, tmp_path / "out", precision="fp32", loras=[(path, 1.0)])

    def fuse(pipe: Any) -> None:
        pipe.load_lora_weights(str(tmp_path), weight_name=path.name)
        pipe.fuse_lora()

    assert against_diffusers(source, bundle, fuse) < TOLERANCE
    assert against_diffusers(source, bundle) > 10 * TOLERANCE


# 3. Our side: what the manifest, a traced part or the runtime has wrong fails the proof, whatever the precision.


@dataclasses.dataclass
class Drawn:
    """An export up to the reference of diffusers."""

    job: ExportJob
    manifest: dict[str, Any]
    calls: list[dict[str, Any]]
    arrays: list[dict[str, Any]]
    reference: Reference

    def traced(self, recipe: PartRecipe) -> Any:
        graph = OpenGraph(self.job.graph(recipe))
        return lambda **inputs: graph.run(inputs)

    def replay(self, manifest: dict[str, Any]) -> float:
        encoders = {r.name: partial(self.traced, r) for r in self.job.recipes}
        with draft_bundle(self.job, manifest) as bundle:
            return replay(bundle, self.reference, self.calls, self.arrays, encoders, 0)


@pytest.fixture(scope="module")
def drawn(sources: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Drawn]:
    known: dict[str, Drawn] = {}

    def find(name: str) -> Drawn:
        if name in known:
            return known[name]
        source = Folder(sources(name))
        facts = model_facts(source, {})
        recipes = recipes_of(source, facts)
        workspace = Workspace(tmp_path_factory.mktemp(name) / "out", name)
        contextlib.ExitStack().enter_context(workspace.open())
        progress = Progress({}, lambda _: None)
        progress.start = lambda _: None  # type: ignore[method-assign]
        job = ExportJob(
            source, facts, recipes, dict.fromkeys((r.name for r in recipes), "int8"), workspace, progress, None, 0
        )
        job.path("unet").parent.mkdir()
        parts = {r.name: trace_part(job, r)["part"] for r in recipes}
        texts = write_tokenizers(job)
        text = [{"file": file, **told} for file, told in zip(texts, facts["text"], strict=True)]
        manifest = facts | {"name": name, "licence": "", "provenance": {}, "parts": parts, "text": text}
        draw_reference(job, manifest)  # writes the golden calls
        with draft_bundle(job, manifest) as bundle:
            calls = picture_arguments(bundle, 0)
            arrays = [picture_arrays(bundle, call, False) for call in calls]
            reference = draw_by_diffusers(source, facts, recipes, find_twin(source, facts), calls, arrays)
        known[name] = Drawn(job, manifest, calls, arrays, reference)
        return known[name]

    return find


def put(where: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Sets a fact of the manifest, by its path."""

    def change(manifest: dict[str, Any]) -> None:
        *path, last = where.split(".")
        for key in path:
            manifest = manifest[int(key)] if isinstance(manifest, list) else manifest[key]
        assert manifest.get(last) != value
        manifest[last] = value

    return change


MANIFEST: dict[str, tuple[str, Callable[[dict[str, Any]], None]]] = {
    "scale": ("sd15", put("latent.scale", 0.1822)),
    "shift": ("sd15", put("latent.shift", 0.01)),
    "alpha to one": ("sd15", put("schedule.set_alpha_to_one", True)),
    "offset": ("sd15", put("schedule.steps_offset", 0)),
    "velocity": ("sd15", put("schedule.prediction_type", "v_prediction")),
    "spacing": ("sd15", put("schedule.timestep_spacing", "trailing")),
    "betas' end": ("sd15", put("schedule.beta_end", 0.0121)),
    "betas": ("sd15", put("schedule.beta_schedule", "linear")),
    "timesteps": ("sd15", put("schedule.num_train_timesteps", 999)),
    "zero SNR": ("sd15", put("schedule.rescale_betas_zero_snr", True)),
    "sampler": ("sd15", put("defaults.sampler", "plms")),
    "guidance": ("sd15", put("defaults.guidance_scale", 7.45)),
    "clipping": ("sd15", put("clip_sample", 1.0)),
    "filling": ("sdxl", put("text.1.pad_id", 1)),
    "zeros for no prompt": ("sdxl", put("zero_negative", False)),
    "no clipping": ("pixel", put("clip_sample", None)),
    "clipping elsewhere": ("pixel", put("clip_sample", 0.9)),
    "guidance that is an input": ("lcm", put("defaults.guidance_scale", 8.4)),
}


@pytest.mark.parametrize("family", ["sd15", "sdxl", "pixel", "lcm", "inpaint"])
def test_what_is_right_passes(drawn: Callable[[str], Drawn], family: str) -> None:
    found = drawn(family)
    assert found.replay(found.manifest) < 2e-5
    for recipe in found.job.recipes:
        assert prove_fp32(recipe.name, found.job.graph(recipe), found.job.cases(recipe.name)).relative < 1e-5


@pytest.mark.parametrize("name", MANIFEST)
def test_a_wrong_manifest(drawn: Callable[[str], Drawn], name: str) -> None:
    family, change = MANIFEST[name]
    found = drawn(family)
    manifest = copy.deepcopy(found.manifest)
    change(manifest)
    with pytest.raises(EdgediffError, match="diffusers"):
        found.replay(manifest)


def fed(**changes: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Any], Any]:
    """Changes inputs of a part."""

    def apply(part: Any) -> Any:
        forward = part.forward
        part.forward = lambda **told: forward(**{k: changes[k](v) if k in changes else v for k, v in told.items()})
        return part

    return apply


def given(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Changes the outputs of a part."""

    def apply(part: Any) -> Any:
        forward = part.forward
        part.forward = lambda **told: change(forward(**told))
        return part

    return apply


def with_model(change: Callable[[Any], object]) -> Callable[[Any], Any]:
    """Changes the modules that a part is made of."""

    def apply(part: Any) -> Any:
        for module in part.modules():
            change(module)
        return part

    return apply


def no_norm(module: Any) -> None:
    if hasattr(module, "final_layer_norm"):
        module.final_layer_norm = torch.nn.Identity()


def other_gelu(module: Any) -> None:
    if hasattr(module, "activation_fn"):
        module.activation_fn = torch.nn.GELU()


PARTS: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "gelu for quick_gelu": ("sd15", "text_encoder", with_model(other_gelu)),
    "no last norm": ("sd15", "text_encoder", with_model(no_norm)),
    "states in another order": ("sd15", "text_encoder", given(lambda out: (out[1], out[0], *out[2:]))),
    "skipped states": ("sd15", "text_encoder", given(lambda out: (*out[:-1], out[0]))),
    "text that is left out": ("sd15", "unet", fed(encoder_hidden_states=lambda x: 0 * x)),
    "time that is off by one": ("sd15", "unet", fed(timestep=lambda t: t + 1)),
    "decoder": ("sd15", "vae_decoder", given(lambda out: 1.001 * out)),
    "encoder": ("sd15", "vae_encoder", given(lambda out: (out[0], 0.5 * out[1]))),
    "order of the sizes": ("sdxl", "unet", fed(time_ids=lambda x: x[:, [2, 3, 0, 1, 4, 5]])),
    "pooled text": ("sdxl", "unet", fed(text_embeds=lambda x: x.roll(1, 1))),
    "guidance as an input": ("lcm", "unet", fed(timestep_cond=lambda x: 0 * x)),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_wrong_part(drawn: Callable[[str], Drawn], tmp_path: Path, name: str) -> None:
    """Against what diffusers' own model was asked and answered, in fp32, before the precision hides it."""
    family, part, change = PARTS[name]
    found = drawn(family)
    recipe: PartRecipe = next(r for r in found.job.recipes if r.name == part)
    wrong = dataclasses.replace(recipe, wrap=lambda model: change(recipe.wrap(model)))
    workspace = Workspace(tmp_path / "out", name)
    cases = found.job.cases(part)
    assert len(cases) > 1
    with workspace.open():
        job = dataclasses.replace(found.job, workspace=workspace)
        trace_part(job, wrong)
        with pytest.raises(EngineError, match=f"{part}: fp32 differs from torch by"):
            prove_fp32(part, job.graph(recipe), cases[1:])


def dark(x: Any) -> Any:
    return np.uint8((x / 2 + 0.49).clip(0, 1) * 255).transpose(0, 2, 3, 1)


RUNTIME: dict[str, tuple[str, str, Any]] = {
    "zeros": ("sdxl", "generation.encode_prompts._zeros", lambda states, blank: states),
    "weights of words": ("sd15", "generation.encode_prompts.emphasise", lambda states, weights: 1.001 * states),
    "guidance's unit": ("lcm", "generation.conditioning.GUIDANCE_UNIT", 999.0),
    "mask": ("inpaint", "generation.masks.THRESHOLD", 256),
    "pixels": ("sd15", "generation.step.to_uint8", dark),
}


@pytest.mark.parametrize("name", RUNTIME)
def test_a_wrong_runtime(drawn: Callable[[str], Drawn], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    family, target, wrong = RUNTIME[name]
    found = drawn(family)
    monkeypatch.setattr(f"edgediff.{target}", wrong)
    with pytest.raises(EngineError, match="diffusers"):
        found.replay(found.manifest)
