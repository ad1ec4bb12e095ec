"""One .safetensors file in the original layout (CompVis, Stability) is a source, too."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from safetensors import safe_open

from edgediff.errors import ArgumentError, BundleError, choices
from edgediff.scratch import scratch_folder

from ..weight import Weight
from .base import COMPONENT_CLASSES
from .by_diffusers import read_by_diffusers
from .clip_tokenizer import END, EXCLAMATION, clip_tokenizer
from .component_weights import converted
from .detect import detect_family
from .folder import Folder
from .loading import model_class, scheduler_config
from .original_layout import UNET, VAE, Tensors, converted_weights, fill_module
from .safetensors_header import Shapes, hollow_tensors, read_header, read_tensors

EPSILON, V = PREDICTIONS = ("epsilon", "v_prediction")
# https://github.com/Stability-AI/ModelSpec: two names of one field, and architectures that imply it.
PREDICTION_FIELDS = ("modelspec.prediction_type", "modelspec.predict_key")
ARCHITECTURES = {"stable-diffusion-v2-512": EPSILON, "stable-diffusion-v2-768-v": V}
BASE_STEP = 875_000  # global_step of Stable Diffusion 2 base, as diffusers tells it from the 768 px model
BASE_CELLS = 64  # a side, of Stable Diffusion 2 models that predict epsilon (512 pixels); the others' is 96
CHANNELS = (4, 9)  # of latents; of latents, mask and masked latents


class SingleFile:
    """A source that is one file; its header is held against the configs before any weight is read.

    Args:
        path: the file.
        config: a diffusers folder whose configs, tokenizers and scheduler stand for the published ones of the file's
            family; its weights are not read.
        prediction_type: epsilon or v_prediction, where the file does not say, or says wrong.
        exchanged: components that come from elsewhere, so that the file may lack them.

    Raises:
        BundleNotFoundError: no such file.
        BundleError: not a safetensors file, not a checkpoint of a known family, or one that its configs do not fit.
        ArgumentError: an unknown ``prediction_type``.
    """

    def __init__(
        self,
        path: Path,
        config: Path | None = None,
        prediction_type: str | None = None,
        exchanged: Sequence[str] = (),
    ) -> None:
        self.path = path
        if prediction_type not in (None, *PREDICTIONS):
            raise ArgumentError(f"no prediction_type {prediction_type!r}; choose from {choices(PREDICTIONS)}")
        self._shapes, self._metadata = read_header(path)
        self._folder = None if config is None else Folder(config)
        self._family = detect_family(path, self._shapes, self._folder, exchanged)
        self._channels = self._shapes.get(f"{UNET}input_blocks.0.0.weight", (0, CHANNELS[0]))[1]
        self._inpaints = self._channels == CHANNELS[1]
        stated = self._stated_prediction()
        self._assumed = (
            not (stated or prediction_type or self._inpaints or self._folder) and self._family.prediction_type == V
        )
        self._prediction = prediction_type or stated or (EPSILON if self._inpaints else self._family.prediction_type)
        if self._folder is not None:
            self.pipeline = self._folder.pipeline
        elif self._channels not in CHANNELS:
            raise BundleError(
                f"{path}: its U-Net takes {self._channels} channels; this version exports {CHANNELS[0]}, or "
                f"{CHANNELS[1]} for inpainting (models of depth, of instructions and upscalers take others)"
            )
        else:
            self.pipeline = (self._inpaints and self._family.inpaint) or self._family.pipeline
        self._hollow: dict[str, Any] = {}
        self._unread: list[str] = []  # what diffusers could not read
        for component in (c for c in (*self._family.prefixes, "unet", "vae") if c not in exchanged):
            self._convert(component, self.hollow(component), hollow_tensors(self._shapes_of(component)))

    def guesses(self) -> str:
        """Say what the file does not tell and had to be assumed; empty where nothing had to."""
        if not self._assumed:
            return ""
        return (
            f"{self.path.name} does not say what it predicts: taken as {self._prediction}; the 512 px base models of "
            f"{self._family.name} predict epsilon (--prediction-type epsilon)"
        )

    def _stated_prediction(self) -> str | None:
        """Read what the file says that it predicts: its marker key, then a config given with it, then its metadata."""
        if "v_pred" in self._shapes:
            return V
        if self._folder is not None:
            return str(self._folder.scheduler().get("prediction_type", EPSILON))
        for field in PREDICTION_FIELDS:
            if stated := self._metadata.get(field):
                return V if stated.startswith("v") else EPSILON
        if (architecture := self._metadata.get("modelspec.architecture", "").split("/")[0]) in ARCHITECTURES:
            return ARCHITECTURES[architecture]
        if "global_step" in self._shapes:
            with safe_open(self.path, "pt") as f:
                return EPSILON if f.get_tensor("global_step").numpy().item() == BASE_STEP else None
        return None

    def has(self, component: str) -> bool:
        return component.replace("tokenizer", "text_encoder") in self._family.configs

    def setting(self, name: str) -> Any:
        if self._folder is not None:
            return self._folder.setting(name)
        base = "text_encoder" in self._family.prefixes  # SDXL's refiner has the second alone
        return {"force_zeros_for_empty_prompt": base, "requires_aesthetics_score": not base}.get(name)

    def _config(self, component: str) -> dict[str, Any]:
        config = dict(self._family.configs[component])
        if component == "unet":
            config["in_channels"] = self._channels
            if self._family.prediction_type == V and self._prediction == EPSILON:
                config["sample_size"] = BASE_CELLS
        return config

    def _make(self, component: str) -> Any:
        """Make the module, its parameters on the meta device and its buffers not."""
        cls = model_class(class_of_component(component))
        with init_empty_weights(include_buffers=False):
            if self._folder is not None:
                config = self._folder.hollow(component).config
                return cls.from_config(config) if hasattr(cls, "load_config") else cls(config)
            config = self._config(component)
            return cls.from_config(config) if hasattr(cls, "load_config") else cls(cls.config_class(**config))

    def hollow(self, component: str) -> Any:
        if component not in self._hollow:
            self._hollow[component] = self._make(component).eval()
        return self._hollow[component]

    def _prefix(self, component: str) -> str:
        return {"unet": UNET, "vae": VAE, **self._family.prefixes}[component]

    def _shapes_of(self, component: str) -> Shapes:
        prefix = self._prefix(component)
        return {name: shape for name, shape in self._shapes.items() if name.startswith(prefix)}

    def _convert(self, component: str, model: Any, tensors: Tensors) -> Tensors:
        return converted_weights(component, self._prefix(component), model, tensors, self.path)

    def weights(self, component: str) -> dict[str, Weight]:
        model = self.hollow(component)
        return converted(self.path, self._shapes_of(component), lambda t: self._convert(component, model, t))

    def load(self, component: str) -> Any:
        """Load the module in float32, in eval mode, with the weights as they are converted here."""
        model = self._make(component)
        weights = self._convert(component, model, read_tensors(self.path, self._shapes_of(component)))
        return fill_module(component, model, weights, self.path)

    def check(self, exchanged: Collection[str] = ()) -> None:
        """Do nothing: the header was held against the configs when the file was opened."""

    def reference(self, component: str, wide: bool = False) -> Any:
        config = self.hollow(component).config
        settings = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        with scratch_folder() as folder:
            try:
                return read_by_diffusers(self.path, component, class_of_component(component), settings, folder, wide)
            except BundleError:
                raise
            except Exception as error:  # diffusers knows fewer layouts, and says so in many ways
                self._unread.append(
                    f"{component}: diffusers' from_single_file cannot read it from this file ({type(error).__name__}); "
                    "the reference has the weights as they are converted here"
                )
                return self.load(component)

    def reference_scheduler(self) -> Any:
        config = self.scheduler()
        return model_class(config["_class_name"]).from_config(config)

    def reference_tokenizer(self, component: str) -> Any:
        return self.tokenizer(component) if self._folder is None else self._folder.reference_tokenizer(component)

    def notes(self) -> list[str]:
        return list(self._unread)

    def scheduler(self) -> dict[str, Any]:
        config = dict(self._family.scheduler) if self._folder is None else self._folder.scheduler()
        name = config.pop("_class_name")
        config["prediction_type"] = self._prediction
        if "ztsnr" in self._shapes:
            config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
            if "rescale_betas_zero_snr" not in scheduler_config(name, config):  # PNDM cannot, among others
                name, config["clip_sample"] = "DDIMScheduler", False
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


def class_of_component(component: str) -> str:
    """Name the class that a component of a single file has."""
    return {"text_encoder_2": "CLIPTextModelWithProjection"}.get(component, COMPONENT_CLASSES[component][0])
