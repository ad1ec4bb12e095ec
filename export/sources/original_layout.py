"""Weights in the original layout (CompVis, Stability, OpenCLIP) get diffusers' names, and must fit their module.

diffusers converts; tensors may be on the meta device, so that a header alone tells whether a file fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import single_file_utils

from edgediff.errors import BundleError

from .clip_names import INNER, renamed
from .loading import ready

UNET, VAE = "model.diffusion_model.", "first_stage_model."
NAMED = (INNER, "text_projection.")
Tensors = Mapping[str, torch.Tensor]


def converted_weights(component: str, prefix: str, model: Any, tensors: Tensors, path: Path) -> Tensors:
    """Convert a checkpoint's tensors of one component to the weights of ``model``, none missing or of another shape.

    Raises:
        BundleError: a weight that the file lacks, that has another shape, or, of a U-Net, that has no place.
    """
    originals = dict(tensors)
    try:
        if component == "unet":
            weights = single_file_utils.convert_ldm_unet_checkpoint(originals, dict(model.config))
        elif component == "vae":
            weights = single_file_utils.convert_ldm_vae_checkpoint(originals, dict(model.config))
        elif ".model." in prefix:
            weights = single_file_utils.convert_open_clip_checkpoint(model, originals, prefix)
        else:
            unprefixed = {name.removeprefix(prefix): t for name, t in originals.items()}
            # Early files (NovelAI's line) lack the inner name.
            weights = {name if name.startswith(NAMED) else INNER + name: t for name, t in unprefixed.items()}
    except KeyError as error:
        raise BundleError(
            f"{path}: {component} lacks {prefix}{error.args[0]}; give a fitting config as --config"
        ) from error
    if component == "unet":
        placed = {id(t) for t in weights.values()}
        if lost := [name for name, t in originals.items() if t.numel() and id(t) not in placed]:
            raise BundleError(
                f"{path}: unet: {len(lost)} weights have no place in the U-Net, first {lost[0]}; it is another model, "
                "or needs --config"
            )
    return fitting_weights(component, model, weights, path)


def fitting_weights(component: str, model: Any, weights: Tensors, path: Path) -> Tensors:
    """Pick those weights that ``model`` has; ``BundleError`` where one is missing or has another shape."""
    parameters = dict(model.named_parameters())
    weights = renamed(weights, parameters)
    if missing := [name for name in parameters if name not in weights]:
        raise BundleError(
            f"{path}: {component} lacks {len(missing)} weights, first {missing[0]}; give a fitting config as --config"
        )
    for name, parameter in parameters.items():
        if weights[name].shape != parameter.shape:
            raise BundleError(
                f"{path}: {component}: {name} has shape {tuple(weights[name].shape)}, its config wants "
                f"{tuple(parameter.shape)}; give a fitting one as --config"
            )
    return {name: weights[name] for name in parameters}


def fill_module(component: str, model: Any, weights: Tensors, path: Path) -> Any:
    """Give the module these weights, in eval mode; ``BundleError`` for one that is not finite."""
    model.load_state_dict(dict(weights), assign=True, strict=False)  # buffers are the module's own
    return ready(model, component, path)
