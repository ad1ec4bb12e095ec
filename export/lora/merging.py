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
from contextlib import ExitStack
from typing import Any

import torch
from safetensors import safe_open

from edgediff.errors import ArgumentError

from .deltas import BESIDE, delta, reshaped_to
from .file import FAMILY_OF_WIDTH, Layer, Lora
from .keys import layer_paths


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
    """Add weight * delta of every LoRA to the parameters of ``module``, in place; return how many layers it changed.

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


@torch.no_grad()
def _changes(loras: Sequence[Lora], component: str, module: Any) -> Iterator[tuple[Any, dict[str, torch.Tensor]]]:
    """Yield (layer of ``module``, what all LoRAs together add to its ``weight`` and ``bias``), layer by layer."""
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
    with ExitStack() as stack:
        files = {path: stack.enter_context(safe_open(path, framework="pt")) for path in {lora.path for lora in loras}}
        for path, items in by_path.items():
            target = module.get_submodule(path)
            sums: dict[str, torch.Tensor] = {}
            for lora, layer in items:
                tensors = {name: _tensor(files[lora.path], key, target) for name, key in layer.keys.items()}
                try:
                    parts = _parts(tensors, _scaling(lora, layer, path, files[lora.path]), target)
                except (RuntimeError, ValueError, IndexError, ArithmeticError) as error:
                    shapes = ", ".join(f"{key} {tuple(tensors[name].shape)}" for name, key in layer.keys.items())
                    hint = _hint(lora, module if component == "unet" else None)
                    raise ArgumentError(
                        f"{lora.path} does not fit {component}.{path}: {error}; it has {shapes}{hint}"
                    ) from error
                for name, part in parts.items():
                    if not part.is_meta and not torch.isfinite(part).all():
                        raise ArgumentError(f"{lora.path} has values that are not finite, first in {layer.first}")
                    part = lora.weight * part
                    sums[name] = sums[name] + part if name in sums else part
            yield target, sums


def _parts(tensors: Mapping[str, torch.Tensor], scale: Callable[[int], float], target: Any) -> dict[str, torch.Tensor]:
    """Work out what one layer of a file adds to ``weight`` and ``bias``."""
    parts = {}
    if set(tensors) - BESIDE:
        parts["weight"] = delta(tensors, scale, target.weight.float())
    if "diff_b" in tensors:
        if getattr(target, "bias", None) is None:
            raise ValueError("it changes a bias, the model has none here")
        parts["bias"] = reshaped_to(tensors["diff_b"], target.bias)
    return parts


def _tensor(file: Any, key: str, target: Any) -> torch.Tensor:
    """Read a tensor in float32; without data where the model has none."""
    if target.weight.is_meta:
        return torch.empty(file.get_slice(key).get_shape(), device="meta")
    tensor: torch.Tensor = file.get_tensor(key).float()
    return tensor


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
    return any(re.match(rf"(.*\.)?({pattern})$", name) for name in (path, f"text_model.{path}"))


def _hint(lora: Lora, unet: Any) -> str:
    """Say which family the file looks like, where the model is of another."""
    width = getattr(getattr(unet, "config", None), "cross_attention_dim", None)
    model = FAMILY_OF_WIDTH.get(width) if isinstance(width, int) else None
    if lora.family is None or lora.family == model:
        return ""
    return f"; it looks like a LoRA for {lora.family}" + (f", the model is {model}" if model else "")
