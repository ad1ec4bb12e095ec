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
from .strict import HARMLESS

UNET, VAE = "model.diffusion_model.", "first_stage_model."
NAMED = (INNER, "text_projection.")
# Convolutions that become linears are placed as other tensors; the rest is of a VAE's training.
PASSED = {"unet": (), "vae": (".attn_1.", ".loss.", ".model_ema.")}
NAMES = {"unet": "U-Net", "vae": "autoencoder", "text_encoder": "text encoder", "text_encoder_2": "text encoder"}
Tensors = Mapping[str, torch.Tensor]


def converted_weights(component: str, prefix: str, model: Any, tensors: Tensors, path: Path) -> Tensors:
    """Convert a checkpoint's tensors of one component to the weights of ``model``, none missing or of another shape.

    Raises:
        BundleError: a weight that the file lacks, that has another shape, or that has no place.
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
    if lost := _without_place(component, model, originals, weights):
        raise BundleError(
            f"{path}: {component}: {len(lost)} weights have no place in the {NAMES[component]}, first {lost[0]}; it is "
            "another model, or needs --config"
        )
    return fitting_weights(component, model, weights, path)


def _without_place(component: str, model: Any, originals: Tensors, weights: Tensors) -> list[str]:
    """List those tensors of a file that have no place in the module, but for those known to change nothing."""
    if component not in ("unet", "vae"):  # text encoders: converted by their names, whatever these are
        known, last = dict(model.named_parameters()), f".layers.{model.config.num_hidden_layers}."
        # Stable Diffusion 2's files hold one layer more than its text encoder reads.
        return [
            name
            for name in renamed(weights, known)
            if name not in known and last not in name and not HARMLESS.match(name.removeprefix(INNER))
        ]
    placed = {id(t) for t in weights.values()}
    return [
        name
        for name, t in originals.items()
        if t.numel() and id(t) not in placed and not any(mark in name for mark in PASSED[component])
    ]


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
