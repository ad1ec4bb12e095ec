"""A component of a checkpoint loads as the module of diffusers or transformers that it is."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights

from edgediff.errors import BundleError

from .clip_names import read_as
from .strict import check_folder
from .weight_files import find_weights
from .widening import HALF, compute_wide


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


def load_module(folder: Path, name: str, component: str, wide: bool = True) -> Any:
    """Load the module of class ``name`` from a folder by its own library, in eval mode.

    Args:
        folder: the component's, with config and weights.
        name: diffusers' or transformers' class.
        component: for messages.
        wide: hold the weights in float32; else as the files hold them, widened as they are used.

    Raises:
        BundleError: it cannot be loaded, lacks a weight, or has one that is not finite.
    """
    weights = find_weights(folder)
    hollow = hollow_module(folder, name)
    check_folder(folder, hollow, component)
    kinds = weights.dtypes()
    dtype = next(iter(kinds)) if not wide and len(kinds) == 1 and kinds <= HALF else torch.float32
    more = read_as(hollow) if name == "CLIPTextModel" else {}
    if weights.variant is not None:
        more["variant"] = weights.variant
    try:
        with no_bars():
            model, info = model_class(name).from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=True,  # never what is pickled
                torch_dtype=dtype,
                output_loading_info=True,
                **more,
            )
    except Exception as error:
        raise BundleError(f"{folder.parent}: {folder.name} cannot be loaded: {error}") from error
    if missing := sorted(info["missing_keys"]):
        raise BundleError(
            f"{folder.parent}: {component}: {name} found no weights for {len(missing)} of its tensors, first "
            f"{missing[0]}; save the component again with save_pretrained"
        )
    return compute_wide(ready(model, component, folder.parent))


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
