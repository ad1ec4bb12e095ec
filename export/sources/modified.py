"""A source is modified: components are exchanged, and LoRAs merged into the rest."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgediff.errors import BundleError, BundleNotFoundError, choices

from ..lora.file import Lora
from ..lora.merging import check, merge, merged_weights
from ..weight import Weight
from .base import COMPONENT_CLASSES, Source
from .component_weights import component_weights
from .loading import hollow_module, load_module
from .strict import check_folder
from .vae_file import check_vae, load_vae, vae_weights

MERGED = ("text_encoder", "text_encoder_2", "unet")  # what a LoRA may change


class ModifiedSource:
    """A source that takes some components from elsewhere and merges LoRAs into the rest.

    Args:
        source: the checkpoint itself.
        others: components with a folder each; the vae may lie in a file, too.
        loras: merged into the components that ``MERGED`` names.

    Raises:
        ArgumentError: a LoRA that matches nothing here, or does not fit.
        BundleNotFoundError, BundleError: a folder that is missing or holds another class.
    """

    def __init__(self, source: Source, others: Mapping[str, Path], loras: Sequence[Lora]) -> None:
        self.path, self.pipeline = source.path, source.pipeline
        self._source, self._others, self._loras = source, dict(others), list(loras)
        for component, folder in others.items():
            if component == "vae" and folder.is_file():
                if not source.has("vae"):
                    raise BundleError(f"{source.path} has no autoencoder that {folder} could stand for")
                check_vae(folder, source.hollow("vae").config)
            else:
                _check_class(folder, COMPONENT_CLASSES[component])
        if loras:
            check(loras, {name: self.hollow(name) for name in MERGED if self.has(name)})

    def has(self, component: str) -> bool:
        return component in self._others or self._source.has(component)

    def hollow(self, component: str) -> Any:
        folder = self._others.get(component)
        if folder and folder.is_dir():
            return hollow_module(folder, _class_of(folder))
        return self._source.hollow(component)

    def weights(self, component: str) -> dict[str, Weight]:
        if folder := self._others.get(component):
            if folder.is_file():
                return vae_weights(folder, self._source.hollow(component).config)
            return component_weights(folder, self.hollow(component))
        weights = self._source.weights(component)
        if component in MERGED and self._loras:
            return merged_weights(self._loras, component, self.hollow(component), weights)
        return weights

    def reference(self, component: str, wide: bool = False) -> Any:
        if folder := self._others.get(component):
            if folder.is_file():
                return load_vae(folder, self._source.hollow(component).config)
            return load_module(folder, _class_of(folder), component, wide)
        if not self._loras or component not in MERGED:
            return self._source.reference(component, wide)
        model = self._source.reference(component, wide=True)  # half precision cannot hold what is added
        merge(self._loras, component, model)
        return model

    def reference_scheduler(self) -> Any:
        return self._source.reference_scheduler()

    def reference_tokenizer(self, component: str) -> Any:
        return self._source.reference_tokenizer(component)

    def notes(self) -> list[str]:
        return self._source.notes()

    def check(self, exchanged: Collection[str] = ()) -> None:
        self._source.check((*exchanged, *self._others))
        for component, path in self._others.items():
            if path.is_dir():
                check_folder(path, self.hollow(component), component)

    def scheduler(self) -> dict[str, Any]:
        return self._source.scheduler()

    def tokenizer(self, component: str) -> Any:
        return self._source.tokenizer(component)

    def setting(self, name: str) -> Any:
        return self._source.setting(name)

    def fingerprint(self) -> str:
        files = [p for path in self._others.values() for p in ([path] if path.is_file() else sorted(path.iterdir()))]
        files += [lora.path for lora in self._loras]
        seen = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files]
        return json.dumps([self._source.fingerprint(), seen, [lora.weight for lora in self._loras]])


def _class_of(folder: Path) -> str:
    config = folder / "config.json"
    if not config.is_file():
        raise BundleNotFoundError(f"no model at {folder}: it has no config.json")
    try:
        return str(json.loads(config.read_text(encoding="utf-8")).get("_class_name"))
    except ValueError as error:
        raise BundleError(f"{config} is not JSON: {error}") from error


def _check_class(folder: Path, known: Sequence[str]) -> None:
    if (name := _class_of(folder)) not in known:
        raise BundleError(f"{folder} is a {name!r}; here it must be one of {choices(known)}")
