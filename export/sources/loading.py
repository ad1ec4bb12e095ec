"""A component of a checkpoint loads as the module of diffusers or transformers that it is."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from edgediff.errors import BundleError

from .clip_names import read_as

# Files of weights that diffusers and transformers read; others may lie beside them.
WEIGHTS = r"(diffusion_pytorch_model|pytorch_model|model)[.-].*(safetensors|bin)(\.index\.json)?$"


def model_class(name: str) -> Any:
    """Find diffusers' or transformers' class of that name; ``AttributeError`` where neither has it."""
    library = "transformers" if name.startswith("CLIP") else "diffusers"
    return getattr(importlib.import_module(library), name)


def scheduler_config(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of diffusers' scheduler ``name``, with its defaults and ``_class_name``.

    What the class does not take is left out: saved configs keep settings of classes that they were before.
    """
    cls = model_class(name)
    taken = inspect.signature(cls.__init__).parameters
    settings = cls.from_config({k: v for k, v in config.items() if k in taken}).config
    return {**{k: v for k, v in settings.items() if k in taken}, "_class_name": name}


def hollow_module(folder: Path, name: str) -> Any:
    """Make the module of class ``name`` that a folder describes, on the meta device. Raises ``BundleError``."""
    cls = model_class(name)
    try:
        with torch.device("meta"):
            if hasattr(cls, "load_config"):  # diffusers'
                return cls.from_config(cls.load_config(str(folder), local_files_only=True))
            return cls(cls.config_class.from_pretrained(str(folder), local_files_only=True))
    except Exception as error:  # diffusers and transformers raise many kinds; the message is what matters
        raise BundleError(f"{folder.parent}: {folder.name} cannot be loaded: {error}") from error


def load_module(folder: Path, name: str, component: str) -> Any:
    """Load the module of class ``name`` from a folder, float32 and in eval mode. Raises ``BundleError``."""
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    weights = [n for n in names if re.match(WEIGHTS, n)]
    half = bool(weights) and all(re.search(r"\.fp16[.-]", n) for n in weights)
    more: dict[str, Any] = {"variant": "fp16"} if half else {}
    if name == "CLIPTextModel":
        more |= read_as(hollow_module(folder, name))
    try:
        with no_bars():
            model = model_class(name).from_pretrained(
                str(folder), local_files_only=True, torch_dtype=torch.float32, **more
            )
    except Exception as error:
        raise BundleError(f"{folder.parent}: {folder.name} cannot be loaded: {error}") from error
    return ready(model, component, folder.parent)


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Keep transformers from drawing bars of its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def ready(model: Any, component: str, path: Path) -> Any:
    """Put the module in eval mode; ``BundleError`` names the first weight that is not finite."""
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise BundleError(f"{path}: {component} has weights that are not finite, first in {key}")
    return model.eval()
