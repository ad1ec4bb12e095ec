"""One .safetensors file in the original layout (CompVis, Stability) as a source, without network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.loaders import single_file_utils
from safetensors import safe_open

from edgediff.errors import ArgumentError, BundleError, BundleNotFoundError, choices

from .families import FAMILIES, Family
from .source import CLASSES, Folder, model_class, ready, scheduler_config
from .words import END, EXCLAMATION, clip_tokenizer

UNET, VAE = "model.diffusion_model.", "first_stage_model."
PREDICTIONS = ("epsilon", "v_prediction")
BASE_CELLS = 64  # a side, of Stable Diffusion 2 models that predict epsilon (512 pixels); the others' is 96
# What other files that people have look like, by what their names hold.
EDM = "edm_"
LOOKS = (
    (("lora_", ".lora.", "hada_w1", "lokr_w1"), "a LoRA: give it as --lora to the export of a checkpoint"),
    (("double_blocks.", "joint_blocks."), "a model of the Flux or SD3 kind, which this version does not export"),
    (("control_model.", "controlnet_"), "a ControlNet, which this version does not export"),
    (("down_blocks.", "up_blocks."), "one part of a diffusers folder: give the folder with model_index.json"),
    (("decoder.up.",), "an autoencoder: give it as --vae to the export of a checkpoint"),
)


class SingleFile:
    """A checkpoint in one file.

    Args:
        path: the file.
        config: a diffusers folder whose configs, tokenizers and scheduler stand for the published ones of the file's
            family; its weights are not read.
        prediction_type: epsilon or v_prediction, where the file does not say.

    Raises:
        BundleNotFoundError: no such file.
        BundleError: not a safetensors file, or not a checkpoint of a known family.
        ArgumentError: an unknown ``prediction_type``.
    """

    def __init__(self, path: Path, config: Path | None = None, prediction_type: str | None = None) -> None:
        self.path = path
        if prediction_type not in (None, *PREDICTIONS):
            raise ArgumentError(f"no prediction_type {prediction_type!r}; choose from {choices(PREDICTIONS)}")
        self._shapes, self._metadata = read_header(path)
        self._family = _family(path, self._shapes)
        channels = self._shapes.get(f"{UNET}input_blocks.0.0.weight", (0, 0))[1]
        self._inpaints = channels == 2 * 4 + 1
        self._folder = None if config is None else Folder(config)
        self._assumed = False
        self._prediction = prediction_type or self._predicts()
        self.pipeline = self._family.pipeline
        if self._inpaints and self._family.inpaint:
            self.pipeline = self._family.inpaint
        if self._folder is not None:
            self.pipeline = self._folder.pipeline

    def guesses(self) -> str:
        """What the file does not say and had to be assumed; empty where nothing had to."""
        if not self._assumed:
            return ""
        return (
            f"{self.path.name} does not say what it predicts: taken as {self._prediction}; the 512 px base models of "
            f"{self._family.name} predict epsilon (--prediction-type epsilon)"
        )

    def _predicts(self) -> str:
        """The marker keys and metadata of trainers; else what the family's published models do."""
        if "v_pred" in self._shapes:
            return "v_prediction"
        said = self._metadata.get("modelspec.prediction_type", "")
        if said:
            return "v_prediction" if said.startswith("v") else "epsilon"
        self._assumed = self._family.prediction_type == "v_prediction" and not self._inpaints and self._folder is None
        return "epsilon" if self._inpaints else self._family.prediction_type

    def has(self, component: str) -> bool:
        if component.startswith("tokenizer"):
            component = component.replace("tokenizer", "text_encoder")
        return component in self._family.configs

    def setting(self, name: str) -> Any:
        if self._folder is not None:
            return self._folder.setting(name)
        return {"force_zeros_for_empty_prompt": "text_encoder" in self._family.prefixes}.get(name)

    def _config(self, component: str) -> dict[str, Any]:
        config = dict(self._family.configs[component])
        if component == "unet":
            config["in_channels"] = 9 if self._inpaints else 4
            if self._family.prediction_type == "v_prediction" and self._prediction == "epsilon":
                config["sample_size"] = BASE_CELLS
        return config

    def _made(self, component: str) -> Any:
        """The module, its parameters on the meta device and its buffers not."""
        cls = model_class(_class_of(component))
        with init_empty_weights(include_buffers=False):
            if self._folder is not None:
                config = self._folder.hollow(component).config
                return cls.from_config(config) if hasattr(cls, "load_config") else cls(config)
            config = self._config(component)
            return cls.from_config(config) if hasattr(cls, "load_config") else cls(cls.config_class(**config))

    def hollow(self, component: str) -> Any:
        return self._made(component).to("meta")

    def load(self, component: str) -> Any:
        model = self._made(component)
        prefix = {"unet": UNET, "vae": VAE, **self._family.prefixes}[component]
        tensors = read_tensors(self.path, [name for name in self._shapes if name.startswith(prefix)])
        if component == "unet":
            converted = single_file_utils.convert_ldm_unet_checkpoint(tensors, dict(model.config))
            placed = {t.data_ptr() for t in converted.values()}
            if lost := [name for name, t in tensors.items() if t.numel() and t.data_ptr() not in placed]:
                raise BundleError(
                    f"{self.path}: unet: {len(lost)} weights have no place in a U-Net of {self._family.name}, first "
                    f"{lost[0]}; it is another model, or needs --config"
                )
        elif component == "vae":
            converted = single_file_utils.convert_ldm_vae_checkpoint(tensors, dict(model.config))
        elif ".model." in prefix:
            converted = single_file_utils.convert_open_clip_checkpoint(model, tensors, prefix)
        else:
            converted = single_file_utils.convert_ldm_clip_checkpoint(tensors)
        return filled(model, converted, component, self.path)

    def scheduler(self) -> dict[str, Any]:
        if self._folder is not None:
            return self._folder.scheduler()
        config = {**self._family.scheduler, "prediction_type": self._prediction}
        if "ztsnr" in self._shapes:
            config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        name = config.pop("_class_name")
        if "ztsnr" in self._shapes and name == "PNDMScheduler":
            name, config = "DDIMScheduler", {k: v for k, v in config.items() if k != "skip_prk_steps"}
            config["clip_sample"] = False
        return scheduler_config(name, config)

    def tokenizer(self, component: str) -> Any:
        if self._folder is not None:
            return self._folder.tokenizer(component)
        first = component == "tokenizer" and self._family.configs["text_encoder"]["hidden_size"] == 768
        return clip_tokenizer(END if first else EXCLAMATION)  # open_clip's encoders read "!" (id 0) as filling

    def fingerprint(self) -> str:
        seen = self.path.stat()
        folder = None if self._folder is None else self._folder.fingerprint()
        return json.dumps([str(self.path), seen.st_size, seen.st_mtime_ns, self._prediction, folder])


def read_header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Names and shapes of a safetensors file's tensors, and its metadata; no tensor is read."""
    if not path.is_file():
        raise BundleNotFoundError(f"no checkpoint at {path}")
    try:
        with safe_open(path, "pt") as f:
            return {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}, dict(f.metadata() or {})  # noqa: SIM118
    except Exception as error:  # the library raises its own
        advice = "; a .ckpt or .pt file must be converted first" if path.suffix != ".safetensors" else ""
        raise BundleError(f"{path} is not a safetensors file: {error}{advice}") from error


def read_tensors(path: Path, names: list[str]) -> dict[str, torch.Tensor]:
    """Those tensors; floats in float32."""
    with safe_open(path, "pt") as f:
        found = {name: f.get_tensor(name) for name in names}
    return {name: t.float() if t.is_floating_point() else t for name, t in found.items()}


def filled(model: Any, weights: Mapping[str, torch.Tensor], component: str, path: Path) -> Any:
    """The module with these weights; ``BundleError`` where one is missing or has another shape."""
    wanted = dict(model.named_parameters())
    if missing := [name for name in wanted if name not in weights]:
        raise BundleError(
            f"{path}: {component} lacks {len(missing)} weights, first {missing[0]}; give a fitting config as --config"
        )
    for name, parameter in wanted.items():
        if weights[name].shape != parameter.shape:
            raise BundleError(
                f"{path}: {component}: {name} has shape {tuple(weights[name].shape)}, its config wants "
                f"{tuple(parameter.shape)}; give a fitting one as --config"
            )
    model.load_state_dict({name: weights[name] for name in wanted}, assign=True, strict=False)
    return ready(model, component, path)


def load_vae(path: Path, config: Any) -> Any:
    """An autoencoder from a file of its own, in the original layout or diffusers', with another one's config."""
    from diffusers import AutoencoderKL

    shapes, _ = read_header(path)
    tensors = read_tensors(path, list(shapes))
    with init_empty_weights(include_buffers=False):
        model = AutoencoderKL.from_config(config)
    if not any("decoder.up_blocks." in name for name in shapes):
        tensors = single_file_utils.convert_ldm_vae_checkpoint(tensors, dict(config))
    return filled(model, tensors, "vae", path)


def _class_of(component: str) -> str:
    return {"text_encoder_2": "CLIPTextModelWithProjection"}.get(component, CLASSES[component][0])


def _family(path: Path, shapes: Mapping[str, Any]) -> Family:
    if marks := [name for name in shapes if name.startswith(EDM)]:
        raise BundleError(
            f"{path} has {marks[0]}: it is trained on EDM's noise levels, which this version does not run"
        )
    for family in reversed(FAMILIES):  # SDXL's refiner has one text encoder where SDXL has two
        if all(any(name.startswith(prefix) for name in shapes) for prefix in family.prefixes.values()):
            break
    else:
        names = " ".join(shapes)
        for marks, look in LOOKS:
            if any(mark in names for mark in marks):
                raise BundleError(f"{path} looks like {look}")
        raise BundleError(
            f"{path} holds no text encoder of {choices(f.name for f in FAMILIES)}; among its {len(shapes)} names: "
            f"{choices(sorted(shapes)[:3]) or 'none'}"
        )
    for prefix, what in ((UNET, "U-Net"), (VAE, "autoencoder")):
        if not any(name.startswith(prefix) for name in shapes):
            raise BundleError(f"{path} is of the family {family.name} and holds no {what} ({prefix}...)")
    return family
