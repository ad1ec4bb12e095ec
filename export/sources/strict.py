"""The tensors of a component's files are held against those of its config, by name and shape, before any is read.

Libraries fill what a file lacks with values of their own, and leave out what their model has no place for: both give
another picture without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from edgediff.errors import BundleError

from .clip_names import INNER
from .weight_files import find_weights

# Tensors without effect that files are known to hold: position ids (a buffer of older transformers), and the rest of
# the CLIP model that a text encoder is part of.
HARMLESS = re.compile(
    r"(.*\.)?position_ids$|logit_scale$|vision_model\.|visual_projection\.|text_projection(\.weight)?$|"
    r"(.*\.)?num_batches_tracked$"
)
ADAPTER = re.compile(r"\.base_layer\.|\.lora_[AB]\.|\.lora_magnitude_vector")
Shape = tuple[int, ...]


def check_folder(folder: Path, hollow: Any, component: str) -> None:
    """Raise ``BundleError`` unless a folder's files hold exactly the tensors of ``hollow``, a module without weights.

    Files are read by their headers.
    """
    found = find_weights(folder).tensors()
    files = {name: path for name, (_, path) in found.items()}
    shapes = {name: shape for name, (shape, _) in found.items()}
    if adapters := [name for name in shapes if ADAPTER.search(name)]:
        raise BundleError(
            f"{files[adapters[0]]}: {component} was saved with a LoRA that is not fused ({len(adapters)} such tensors, "
            f"first {adapters[0]}); call pipe.fuse_lora() and pipe.unload_lora_weights() before save_pretrained, or "
            "save the pipeline without it and give the LoRA as --lora"
        )
    if hasattr(hollow, "_fix_state_dict_keys_on_load"):  # attention's older names, as diffusers renames them
        tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        hollow._fix_state_dict_keys_on_load(tensors)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_names(component, folder, wanted_tensors(hollow), shapes)


def wanted_tensors(hollow: Any) -> dict[str, Shape]:
    """List the parameters of a module with their shapes."""
    return {name: tuple(p.shape) for name, p in hollow.named_parameters()}


def check_names(component: str, where: Path, wanted: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    """Raise ``BundleError`` for a tensor that ``found`` lacks, has in another shape, or has no place for.

    Args:
        component: for messages.
        where: the file or folder, for messages.
        wanted: shapes by name, as the config gives them.
        found: shapes by name, as the files hold them under the same names.
    """
    wanted = {name.removeprefix(INNER): shape for name, shape in wanted.items()}
    found = {name.removeprefix(INNER): shape for name, shape in found.items()}
    what = f"{where}: {component}"
    if missing := [name for name in wanted if name not in found]:
        raise BundleError(
            f"{what} lacks {len(missing)} of the {len(wanted)} tensors that its config asks for, {_first(missing)}; "
            "save it again with save_pretrained, or mend its config.json"
        )
    for name, shape in wanted.items():
        if found[name] != shape:
            raise BundleError(
                f"{what}: {name} has shape {found[name]}, its config asks for {shape}; mend its config.json"
            )
    if lost := [name for name in found if name not in wanted and not HARMLESS.match(name)]:
        raise BundleError(
            f"{what} holds {len(lost)} tensors that its config has no place for, {_first(lost)}; it is another model, "
            "or its config.json says too little"
        )


def _first(names: Iterable[str]) -> str:
    return f"first {next(iter(names))}"
