"""The weights of a component go by the names that its module has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..weight import Weight
from .clip_names import renamed
from .mapped_weights import float_tensors, folder_weights, of_file, of_tensor
from .original_layout import Tensors
from .safetensors_header import Shapes, hollow_tensors, map_tensors


def component_weights(folder: Path, model: Any) -> dict[str, Weight]:
    """Find the weights of a component's folder under the names of ``model``, a module of its class."""
    return as_named(folder_weights(folder), model)


def as_named(weights: Mapping[str, Weight], model: Any) -> dict[str, Weight]:
    """Give weights the names that ``model`` has today: files keep those of the version that wrote them."""
    if hasattr(model, "_fix_state_dict_keys_on_load"):  # diffusers' own list of attention's older names
        hollow = {name: torch.empty(w.shape, device="meta") for name, w in weights.items()}
        places = {id(tensor): name for name, tensor in hollow.items()}
        kept = list(hollow.values())  # an id is a tensor's as long as it lives
        model._fix_state_dict_keys_on_load(hollow)
        weights = {name: weights[places[id(tensor)]] for name, tensor in hollow.items()}
        del kept
    return renamed(weights, dict(model.named_parameters()))


def converted(path: Path, shapes: Shapes, convert: Callable[[Tensors], Tensors]) -> dict[str, Weight]:
    """Find the weights of a file in the original layout under the names that ``convert`` gives them.

    What it only renames is read from the file when it is needed. What it cuts or turns is a view of the mapped file.
    """
    hollow = hollow_tensors(shapes)
    places = {id(tensor): name for name, tensor in hollow.items()}
    renamed = convert(hollow)
    facts = float_tensors(path)
    out = {name: of_file(path, *facts[places[id(t)]]) for name, t in renamed.items() if id(t) in places}
    if len(out) < len(renamed):
        changed = convert(map_tensors(path, shapes))
        out |= {name: of_tensor(changed[name]) for name in renamed if name not in out}
    return out
