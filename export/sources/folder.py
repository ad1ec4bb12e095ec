"""A diffusers folder, as ``save_pretrained`` writes it, is a source."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import transformers

from edgediff.bundle.hints import no_model
from edgediff.errors import BundleError, BundleNotFoundError, choices
from edgediff.looks import stand_in

from ..weight import Weight
from .base import COMPONENT_CLASSES, ENCODERS
from .clip_tokenizer import VOCABULARY, load_tokenizer
from .component_weights import component_weights
from .loading import hollow_module, load_module, model_class, scheduler_config
from .strict import check_folder
from .weight_files import find_files

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

DDIM = "DDIMScheduler"  # what DDIMPipeline makes of any scheduler
TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")  # another class of transformers may read pickled weights
SMALL = [encoder for encoder, _ in ENCODERS]


class Folder:
    """A source that is a folder with ``model_index.json``.

    Raises:
        BundleNotFoundError: no index, or a component's folder is missing.
        BundleError: an index that is not JSON, or a class that cannot be exported.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        index = path / "model_index.json"
        if not index.is_file():
            raise BundleNotFoundError(f"no diffusers model at {path}: {no_model(path)}")
        try:
            self._index: Mapping[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        except ValueError as error:
            wrong = stand_in(index)
            raise BundleError(f"{index} {f'is {wrong}' if wrong else f'is not JSON: {error}'}") from error
        if not isinstance(self._index, dict):
            raise BundleError(f"{index} holds {type(self._index).__name__}, not an object")
        self.pipeline = str(self._index.get("_class_name"))
        if self.pipeline not in PIPELINES:
            raise BundleError(f"{path} is a {self.pipeline!r}; this version exports {choices(PIPELINES)}")
        if graphs := sorted(p for p in path.glob("*/*.onnx")):
            where = graphs[0].relative_to(path).as_posix()
            if not any(find_files(path / component) for component in COMPONENT_CLASSES):
                raise BundleError(
                    f"{path} holds ONNX graphs ({where}) and no weights of torch; export takes the folder that they "
                    "were made of"
                )
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
        for component, known in COMPONENT_CLASSES.items():
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
        return hollow_module(self.path / component, self._class(component))

    def weights(self, component: str) -> dict[str, Weight]:
        return component_weights(self.path / component, self.hollow(component))

    def reference(self, component: str, wide: bool = False) -> Any:
        wide = wide or component in SMALL  # small, and their code looks at their weights' type
        return load_module(self.path / component, self._class(component), component, wide)

    def reference_scheduler(self) -> Any:
        own = model_class(str(self._index["scheduler"][1])).from_pretrained(str(self.path / "scheduler"))
        return model_class(DDIM).from_config(own.config) if self.pipeline == "DDIMPipeline" else own

    def reference_tokenizer(self, component: str) -> Any:
        if self._class(component) not in TOKENIZERS:
            return self.tokenizer(component)
        try:
            cls = getattr(transformers, self._class(component))
            return cls.from_pretrained(str(self.path / component), local_files_only=True)
        except Exception:  # a slow tokenizer without its files, or a class of other versions
            return self.tokenizer(component)

    def notes(self) -> list[str]:
        return []

    def check(self, exchanged: Collection[str] = ()) -> None:
        for component in COMPONENT_CLASSES:
            if self.has(component) and component not in exchanged:
                check_folder(self.path / component, self.hollow(component), component)

    def scheduler(self) -> dict[str, Any]:
        name = str(self._index["scheduler"][1])
        try:
            config = model_class(name).load_config(str(self.path / "scheduler"))
            return scheduler_config(DDIM if self.pipeline == "DDIMPipeline" else name, config)
        except Exception as error:
            raise BundleError(f"{self.path}: scheduler cannot be loaded: {error}") from error

    def tokenizer(self, component: str) -> Any:
        folder = self.path / component
        if not ((folder / "tokenizer.json").is_file() or all((folder / name).is_file() for name in VOCABULARY)):
            raise BundleNotFoundError(f"{folder} has neither tokenizer.json nor {' and '.join(VOCABULARY)}")
        try:
            return load_tokenizer(folder)
        except Exception as error:
            raise BundleError(f"{self.path}: {component} cannot be loaded: {error}") from error

    def fingerprint(self) -> str:
        # Components alone, which may be links: the bundle may grow in the folder, and a log beside them.
        folders = [self.path / name for name, listed in sorted(self._index.items()) if isinstance(listed, list)]
        own = [p for folder in folders if folder.is_dir() for p in sorted(folder.iterdir()) if p.is_file()]
        files = [self.path / "model_index.json", *own]
        seen = [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
        return json.dumps([str(self.path.resolve()), seen])
