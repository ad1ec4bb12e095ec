"""A checkpoint whose components load one at a time: a diffusers folder, as ``save_pretrained`` writes it."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from edgediff.errors import ArgumentError, BundleError, BundleNotFoundError, choices

# Components that become parts of a bundle, by the classes that can be exported.
CLASSES: dict[str, tuple[str, ...]] = {
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "unet": ("UNet2DConditionModel", "UNet2DModel"),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "preview_decoder": ("AutoencoderTiny",),
}
# Files of weights that diffusers and transformers read; others may lie beside them.
WEIGHTS = r"(diffusion_pytorch_model|pytorch_model|model)[.-].*(safetensors|bin)(\.index\.json)?$"
# Pipelines that can be exported, and the components that each must have.
PIPELINES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        (
            "StableDiffusionPipeline",
            "StableDiffusionImg2ImgPipeline",
            "StableDiffusionInpaintPipeline",
            "LatentConsistencyModelPipeline",
        ),
        ("text_encoder", "tokenizer", "unet", "vae", "scheduler"),
    ),
    **dict.fromkeys(
        ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
        ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "unet", "vae", "scheduler"),
    ),
    "DDPMPipeline": ("unet", "scheduler"),
    "DDIMPipeline": ("unet", "scheduler"),
}
# What a pipeline may have as null in its index: models of pixels have no autoencoder, SDXL's refiner one text encoder.
ABSENT = {
    "StableDiffusionPipeline": ("vae",),
    "StableDiffusionXLImg2ImgPipeline": ("text_encoder", "tokenizer"),
}


class Source(Protocol):
    """What an export reads. ``path`` names it in messages; ``pipeline`` is diffusers' class."""

    path: Path
    pipeline: str

    def has(self, component: str) -> bool: ...

    def hollow(self, component: str) -> Any:
        """The module without weights (on the meta device): its config with every default, its shapes."""

    def load(self, component: str) -> Any:
        """The module in float32 on the CPU, in eval mode, every weight finite."""

    def scheduler(self) -> dict[str, Any]:
        """The scheduler's config with every default and its ``_class_name``."""

    def tokenizer(self, component: str) -> Any:
        """A fast CLIP tokenizer: ``tokenizer`` or ``tokenizer_2``."""

    def setting(self, name: str) -> Any:
        """A setting of the pipeline itself (``force_zeros_for_empty_prompt``); None where there is none."""

    def fingerprint(self) -> str:
        """Changes when a file of the source does."""


class Folder:
    """A folder with ``model_index.json``.

    Raises:
        BundleNotFoundError: no index, or a component's folder is missing.
        BundleError: an index that is not JSON, or a class that cannot be exported.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        index = path / "model_index.json"
        if not index.is_file():
            raise BundleNotFoundError(f"no diffusers model at {path}: it has no model_index.json")
        try:
            self._index: Mapping[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        except ValueError as error:
            raise BundleError(f"{index} is not JSON: {error}") from error
        if not isinstance(self._index, dict):
            raise BundleError(f"{index} holds {type(self._index).__name__}, not an object")
        self.pipeline = str(self._index.get("_class_name"))
        if self.pipeline not in PIPELINES:
            raise BundleError(f"{path} is a {self.pipeline!r}; this version exports {choices(PIPELINES)}")
        for component in PIPELINES[self.pipeline]:
            if component in ABSENT.get(self.pipeline, ()) and self._index.get(component) in (None, [None, None]):
                continue
            if not (path / component).is_dir():
                raise BundleNotFoundError(
                    f"{path}: part {component} is missing; save the whole pipeline with save_pretrained"
                )
            listed = self._index.get(component)
            if not (isinstance(listed, list) and len(listed) == 2 and all(isinstance(v, str) for v in listed)):
                raise BundleError(f"{index}: {component} is {listed!r}; it must be [library, class]")
        for component, known in CLASSES.items():
            if self.has(component) and self._class(component) not in known:
                raise BundleError(
                    f"{path}: {component} is a {self._class(component)!r}; this version exports {choices(known)}"
                )

    def has(self, component: str) -> bool:
        listed = self._index.get(component)
        return isinstance(listed, list) and None not in listed and (self.path / component).is_dir()

    def setting(self, name: str) -> Any:
        return self._index.get(name)

    def _class(self, component: str) -> str:
        return str(self._index[component][1])

    def hollow(self, component: str) -> Any:
        return meta_folder(self.path / component, self._class(component))

    def load(self, component: str) -> Any:
        return load_folder(self.path / component, self._class(component), component)

    def scheduler(self) -> dict[str, Any]:
        name = str(self._index["scheduler"][1])
        try:
            return scheduler_config(name, model_class(name).load_config(str(self.path / "scheduler")))
        except Exception as error:
            raise BundleError(f"{self.path}: scheduler cannot be loaded: {error}") from error

    def tokenizer(self, component: str) -> Any:
        # The fast tokenizer whatever the index names (SD 1.5 names the slow one): only it can write tokenizer.json.
        from transformers import CLIPTokenizerFast

        try:
            return CLIPTokenizerFast.from_pretrained(str(self.path / component), local_files_only=True)
        except Exception as error:
            raise BundleError(f"{self.path}: {component} cannot be loaded: {error}") from error

    def fingerprint(self) -> str:
        folders = [p for p in sorted(self.path.iterdir()) if p.is_dir()]  # components, which may be links
        files = [p for folder in (self.path, *folders) for p in sorted(folder.iterdir()) if p.is_file()]
        seen = [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
        return json.dumps([str(self.path.resolve()), seen])


def model_class(name: str) -> Any:
    """diffusers' or transformers' class of that name; ``AttributeError`` where neither has it."""
    library = "transformers" if name.startswith("CLIP") else "diffusers"
    return getattr(importlib.import_module(library), name)


def scheduler_config(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of diffusers' scheduler ``name``, with its defaults and ``_class_name``. What the class does not
    take is left out: saved configs keep settings of classes that they were before.
    """
    cls = model_class(name)
    taken = inspect.signature(cls.__init__).parameters
    found = cls.from_config({k: v for k, v in config.items() if k in taken}).config
    return {**{k: v for k, v in found.items() if k in taken}, "_class_name": name}


def meta_folder(folder: Path, name: str) -> Any:
    """The module of class ``name`` that a folder describes, on the meta device. Raises ``BundleError``."""
    cls = model_class(name)
    try:
        with torch.device("meta"):
            if hasattr(cls, "load_config"):  # diffusers'
                return cls.from_config(cls.load_config(str(folder), local_files_only=True))
            return cls(cls.config_class.from_pretrained(str(folder), local_files_only=True))
    except Exception as error:  # diffusers and transformers raise many kinds; the message is what matters
        raise BundleError(f"{folder.parent}: {folder.name} cannot be loaded: {error}") from error


def load_folder(folder: Path, name: str, component: str) -> Any:
    """The module of class ``name`` in a folder, float32 and in eval mode. Raises ``BundleError``."""
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    weights = [n for n in names if re.match(WEIGHTS, n)]
    half = bool(weights) and all(re.search(r"\.fp16[.-]", n) for n in weights)
    try:
        model = model_class(name).from_pretrained(
            str(folder), local_files_only=True, torch_dtype=torch.float32, variant="fp16" if half else None
        )
    except Exception as error:
        raise BundleError(f"{folder.parent}: {folder.name} cannot be loaded: {error}") from error
    return ready(model, component, folder.parent)


def ready(model: Any, component: str, path: Path) -> Any:
    """The module in eval mode; ``BundleError`` naming the first weight that is not finite."""
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise BundleError(f"{path}: {component} has weights that are not finite, first in {key}")
    return model.eval()


def open_source(path: Path, config: Path | None = None, prediction_type: str | None = None) -> Source:
    """The checkpoint at ``path``, a folder or a file; no weight is loaded. Raises as its class does."""
    from .single_file import SingleFile

    if path.is_dir() or not (path.suffix or path.is_file()):
        for name, value in (("config", config), ("prediction_type", prediction_type)):
            if value is not None:
                raise ArgumentError(f"{name} is {str(value)!r}; it is for single files, and {path} is a folder")
        return Folder(path)
    return SingleFile(path, config, prediction_type)
