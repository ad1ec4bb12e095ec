"""A component of a checkpoint loads as the module of diffusers or transformers that it is."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights

from edgediff.errors import BundleError

from .file_weights import half_files_alone


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
    """Make the module of class ``name`` that a folder describes, in eval mode; raise ``BundleError`` where it cannot.

    Its parameters are on the meta device, its buffers hold their values.
    """
    cls = model_class(name)
    try:
        with init_empty_weights(include_buffers=False):
            if hasattr(cls, "load_config"):  # diffusers'
                return cls.from_config(cls.load_config(str(folder), local_files_only=True)).eval()
            return cls(cls.config_class.from_pretrained(str(folder), local_files_only=True)).eval()
    except Exception as error:  # diffusers and transformers raise many kinds; the message is what matters
        raise BundleError(f"{folder.parent}: {folder.name} cannot be loaded: {error}") from error


def load_module(folder: Path, name: str, component: str) -> Any:
    """Load the module of class ``name`` from a folder, float32 and in eval mode. Raises ``BundleError``."""
    half = half_files_alone(folder)
    try:
        model = model_class(name).from_pretrained(
            str(folder), local_files_only=True, torch_dtype=torch.float32, variant="fp16" if half else None
        )
    except Exception as error:
        raise BundleError(f"{folder.parent}: {folder.name} cannot be loaded: {error}") from error
    return ready(model, component, folder.parent)


def ready(model: Any, component: str, path: Path) -> Any:
    """Put the module in eval mode; ``BundleError`` names the first weight that is not finite."""
    for key, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise BundleError(f"{path}: {component} has weights that are not finite, first in {key}")
    return model.eval()
