"""An autoencoder may lie in a file of its own, in the original layout or in diffusers'; another one's config serves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.loaders import single_file_utils

from edgediff.errors import BundleError
from edgediff.looks import looks_like

from ..weight import Weight
from .component_weights import converted
from .original_layout import Tensors, converted_weights, fill_module
from .safetensors_header import Shapes, hollow_tensors, read_header, read_tensors
from .strict import check_names, wanted_tensors


def check_vae(path: Path, config: Any) -> None:
    """Raise ``BundleError`` where the file's header shows that it holds no such autoencoder; no weight is read."""
    _weights(path, _hollow(config), hollow_tensors)


def load_vae(path: Path, config: Any) -> Any:
    """Load the ``AutoencoderKL`` of ``config`` with the file's weights, float32 and in eval mode.

    A whole checkpoint will do: only its autoencoder is read. Raises ``BundleError``.
    """
    model = _hollow(config)
    return fill_module("vae", model, _weights(path, model, lambda shapes: read_tensors(path, shapes)), path)


def vae_weights(path: Path, config: Any) -> dict[str, Weight]:
    """Find the float32 weights of the ``AutoencoderKL`` of ``config`` in the file; none is read."""
    shapes, _ = read_header(path)

    def convert(tensors: Tensors) -> Tensors:
        return _weights(path, _hollow(config), lambda wanted: {name: tensors[name] for name in wanted})

    return converted(path, shapes, convert)


def _hollow(config: Any) -> Any:
    from diffusers import AutoencoderKL

    with init_empty_weights(include_buffers=False):
        return AutoencoderKL.from_config(config)


def _weights(path: Path, model: Any, read: Callable[[Shapes], dict[str, torch.Tensor]]) -> Tensors:
    shapes, _ = read_header(path)
    if not any("decoder.conv_in." in name for name in shapes):
        look = looks_like(shapes)
        raise BundleError(f"{path} holds no autoencoder{f'; it looks like {look}' if look else ''}")
    prefix = next((p for p in single_file_utils.LDM_VAE_KEYS if any(name.startswith(p) for name in shapes)), "")
    tensors = read({name: shape for name, shape in shapes.items() if name.startswith(prefix)})
    if not any("decoder.up_blocks." in name for name in shapes):
        return converted_weights("vae", prefix, model, tensors, path)
    model._fix_state_dict_keys_on_load(tensors)  # attention's older names, as sd-vae-ft-mse has them
    check_names("vae", path, wanted_tensors(model), {name: tuple(t.shape) for name, t in tensors.items()})
    return {name: tensors[name] for name in wanted_tensors(model)}
