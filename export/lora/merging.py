"""LoRAs are merged into a checkpoint's modules, one component in memory at a time.

from edgediff_export.lora.file import read_lora

loras = [read_lora("style.safetensors", 0.8)]
check(loras, {component: source.hollow(component) for component in components})
for component in components:
    merge(loras, component, source.load(component))
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from edgediff.errors import ArgumentError, printable, shown

from ..weight import Array, Weight
from .deltas import BESIDE, delta, reshaped_to
from .file import FAMILY_OF_WIDTH, MAX_PATTERNS, Layer, Lora
from .keys import layer_paths
from .opened import open_lora


def check(loras: Sequence[Lora], modules: Mapping[str, Any]) -> None:
    """Raise where a LoRA does not fit the model; ``modules`` are all its components, best without weights (meta).

    On meta modules only names and shapes are compared; the weights of others are left as they are.

    Raises:
        ArgumentError: names of layers that the model does not have, shapes that do not fit, a layer changed twice.
    """
    names = {component: layer_paths(module) for component, module in modules.items()}
    for lora in loras:
        lost = [layer for layer in lora.layers if layer.name not in names.get(layer.component, ())]
        if lost:
            shown = ", ".join(layer.first for layer in lost[:3]) + (", ..." if len(lost) > 3 else "")
            raise ArgumentError(
                f"{lora.path}: {len(lost)} of its {len(lora.layers)} layers are not in the model: {shown}"
                f"{_hint(lora, modules.get('unet'))}"
            )
    for component, module in modules.items():
        for _ in _changes(loras, component, module):
            pass


@torch.no_grad()
def merge(loras: Sequence[Lora], component: str, module: Any) -> int:
    """Add the delta of every LoRA at its weight to the parameters of ``module``, in place.

    It returns how many layers it changed.

    Deltas are worked out in float32 from the module's own weights, so the order of ``loras`` does not matter. Layers
    that the module does not have are skipped: ``check`` finds them.

    Raises:
        ArgumentError: shapes that do not fit, a layer that one file changes twice, values that are not finite. Layers
            that came before are changed by then.
    """
    count = 0
    for count, (layer, changes) in enumerate(_changes(loras, component, module), 1):
        for name, change in changes.items():
            parameter = getattr(layer, name)
            parameter.add_(change.to(parameter.dtype))
    return count


def merged_weights(
    loras: Sequence[Lora], component: str, module: Any, weights: Mapping[str, Weight]
) -> dict[str, Weight]:
    """Give a component's weights with the LoRAs merged; each is worked out when it is read.

    ``module`` is the component, best without weights. Raises as ``merge``, when a weight is read.
    """
    out = dict(weights)
    for path, items in _by_path(loras, component, module).items():
        for name in ("weight", "bias"):
            if (weight := out.get(f"{path}.{name}")) is not None:
                change = partial(_merged, component, path, items, weights, name)
                out[f"{path}.{name}"] = replace(weight, read=change, mapped=None)
    return out


@torch.no_grad()
def _merged(
    component: str,
    path: str,
    items: Sequence[tuple[Lora, Layer]],
    weights: Mapping[str, Weight],
    name: str,
) -> Array:
    """Work out one merged weight: what the file holds, and what the LoRAs add to it."""
    read = {key: weights[f"{path}.{key}"].read() for key in ("weight", "bias") if f"{path}.{key}" in weights}
    tensors = {key: torch.from_numpy(np.array(values)) for key, values in read.items()}
    target = SimpleNamespace(weight=tensors["weight"], bias=tensors.get("bias"))
    sums = _sums(component, path, items, target, None)
    merged = tensors[name] + sums[name] if name in sums else tensors[name]
    out: Array = merged.numpy()
    return out


@torch.no_grad()
def _changes(loras: Sequence[Lora], component: str, module: Any) -> Iterator[tuple[Any, dict[str, torch.Tensor]]]:
    """Yield (layer of ``module``, what all LoRAs together add to its ``weight`` and ``bias``), layer by layer."""
    for path, items in _by_path(loras, component, module).items():
        target = module.get_submodule(path)
        yield target, _sums(component, path, items, target, module if component == "unet" else None)


def _by_path(loras: Sequence[Lora], component: str, module: Any) -> dict[str, list[tuple[Lora, Layer]]]:
    """Find what changes each layer of ``module``, by the layer's path."""
    paths = layer_paths(module)
    by_path: dict[str, list[tuple[Lora, Layer]]] = defaultdict(list)
    for lora in loras:
        own: dict[str, Layer] = {}
        for layer in lora.layers:
            if layer.component == component and (path := paths.get(layer.name)):
                if path in own:
                    raise ArgumentError(
                        f"{lora.path} changes {component}.{path} twice: {own[path].first} and {layer.first}"
                    )
                own[path] = layer
                by_path[path].append((lora, layer))
    return by_path


def _sums(
    component: str, path: str, items: Sequence[tuple[Lora, Layer]], target: Any, unet: Any
) -> dict[str, torch.Tensor]:
    """Work out what all LoRAs together add to ``weight`` and ``bias`` of the layer ``target`` at ``path``."""
    sums: dict[str, torch.Tensor] = {}
    for lora, layer in items:
        with open_lora(lora.path) as file:
            tensors = {name: _tensor(lora, file, key, target) for name, key in layer.keys.items()}
            try:
                parts = _parts(tensors, _scaling(lora, layer, path, file), target, lora.weight)
            except (RuntimeError, ValueError, IndexError, ArithmeticError) as error:
                shapes = ", ".join(f"{key} {tuple(tensors[name].shape)}" for name, key in layer.keys.items())
                raise ArgumentError(
                    f"{lora.path} does not fit {component}.{path}: {error}; it has {shapes}{_hint(lora, unet)}"
                ) from error
        for name, part in parts.items():
            if not part.is_meta and not torch.isfinite(part).all():
                raise ArgumentError(f"{lora.path} has values that are not finite, first in {layer.first}")
            sums[name] = sums[name] + part if name in sums else part
    return sums


def _parts(
    tensors: Mapping[str, torch.Tensor], scale: Callable[[int], float], target: Any, strength: float
) -> dict[str, torch.Tensor]:
    """Work out what one layer of a file of weight ``strength`` adds to ``weight`` and ``bias``."""
    parts = {}
    if set(tensors) - BESIDE:
        parts["weight"] = delta(tensors, scale, target.weight.float(), strength)
    if "diff_b" in tensors:
        if getattr(target, "bias", None) is None:
            raise ValueError("it changes a bias, the model has none here")
        parts["bias"] = strength * reshaped_to(tensors["diff_b"], target.bias)
    return parts


def _tensor(lora: Lora, file: Any, key: str, target: Any) -> torch.Tensor:
    """Read a tensor in float32; without data where the model has none."""
    try:
        if target.weight.is_meta:
            return torch.empty(file.get_slice(key).get_shape(), device="meta")
        tensor: torch.Tensor = file.get_tensor(key)
    except Exception as error:  # the library raises its own, torch for types and sizes that it lacks
        raise ArgumentError(f"{lora.path}: {shown(key)} cannot be read: {printable(str(error)[:200])}") from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise ArgumentError(f"{lora.path}: {shown(key)} is of type {tensor.dtype}; it must hold real numbers")
    return tensor.float()


def _scaling(lora: Lora, layer: Layer, path: str, file: Any) -> Callable[[int], float]:
    """Return the factor at a rank: alpha / rank, where the file says an alpha, else 1."""
    config = lora.configs.get(layer.component, {})
    if "alpha" in layer.keys:
        alpha = float(file.get_tensor(layer.keys["alpha"]).item())
    elif config.get("lora_alpha") is not None:
        patterns = config.get("alpha_pattern") or {}
        alpha = next((a for p, a in patterns.items() if _matches(p, path)), config["lora_alpha"])
        if config.get("use_rslora"):  # arXiv:2312.03732
            return lambda rank: alpha / math.sqrt(rank)
    else:
        return lambda rank: 1.0
    if not math.isfinite(alpha):
        raise ValueError(f"its alpha is {alpha}")
    # An alpha of 0 stands for the rank in kohya's scripts and in LyCORIS.
    return lambda rank: (alpha or rank) / rank


def _matches(pattern: str, path: str) -> bool:
    """Tell whether a pattern of PEFT's means the layer, with the inner module of a text encoder or without it."""
    return any(_compiled(pattern).match(name) for name in (path, f"text_model.{path}"))


@lru_cache(MAX_PATTERNS)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")


def _hint(lora: Lora, unet: Any) -> str:
    """Say which family the file looks like, where the model is of another."""
    width = getattr(getattr(unet, "config", None), "cross_attention_dim", None)
    model = FAMILY_OF_WIDTH.get(width) if isinstance(width, int) else None
    if lora.family is None or lora.family == model:
        return ""
    return f"; it looks like a LoRA for {lora.family}" + (f", the model is {model}" if model else "")
