"""A LoRA file tells by its names what it holds: layers, PEFT's settings, and the model family that it looks like."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgediff.bundle.hints import not_here
from edgediff.errors import ArgumentError, BundleError, BundleNotFoundError, shown
from edgediff.files import read_regular

from .deltas import BESIDE, FORMULAS
from .keys import parse_key, unsupported_algorithm
from .opened import open_lora

READABLE = "LoRA, LoCon, LoHa, LoKr, full differences and DoRA"
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
MAX_SETTINGS = 2 << 20  # bytes of adapter_config.json, which has some kB
MAX_PATTERNS, MAX_PATTERN = 2_048, 256  # of layers with an alpha of their own, and of characters in one
SLOW = re.compile(r"\)[*+?{]|\\\d|\(\?[^:]")  # a group that repeats, a reference back, a look around
KOHYA_DOWN = "lora_down.weight"  # in kohya's files a layer without alpha has that of its rank
# Families by the width of the text that the U-Net attends to.
FAMILY_OF_WIDTH = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}


@dataclass(frozen=True)
class Layer:
    """One layer that a file changes. ``keys`` maps the names of tensors (values of ``ENDINGS``) to the file's keys."""

    component: str
    name: str
    keys: Mapping[str, str]

    @property
    def first(self) -> str:
        """The first of its keys stands for the layer in messages."""
        return next(key for name, key in self.keys.items() if name != "alpha")


@dataclass(frozen=True)
class Lora:
    """A LoRA file says what it changes, and by how much; its tensors stay in the file.

    ``family`` is a guess from names and widths, for messages. ``configs`` are PEFT's settings by component. ``doubt``
    is a line about what the file leaves open; empty where it leaves nothing open.
    """

    path: Path
    weight: float
    layers: Sequence[Layer] = field(repr=False)
    family: str | None = None
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    doubt: str = ""


def read_lora(path: Path | str, weight: float = 1.0) -> Lora:
    """Read the names in a safetensors file as kohya's scripts, LyCORIS, diffusers or PEFT write it.

    Raises:
        ArgumentError: a weight that is not finite.
        BundleNotFoundError: no such file.
        BundleError: not safetensors, no LoRA in it, an algorithm that is not known, tensors missing.
    """
    path = Path(path)
    if not math.isfinite(weight):
        raise ArgumentError(f"the weight of {path} is {weight}; choose a finite number, such as 0.8")
    if not path.is_file():
        raise BundleNotFoundError(f"no LoRA file at {path}{not_here(path)}")
    with open_lora(path) as file:
        shapes = {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    layers = _layers(path, list(shapes))
    family = _family(layers, shapes.__getitem__)
    configs = _configs(path, metadata)
    doubt = _doubt(path, layers, configs, shapes.__getitem__)
    return Lora(path, float(weight), layers, family, configs, doubt)


def _layers(path: Path, keys: Sequence[str]) -> list[Layer]:
    for key in keys:
        if name := unsupported_algorithm(key):
            raise BundleError(f"{path}: {key} is {name}, which cannot be merged; choose {READABLE}")
    parsed = {key: parse_key(key) for key in keys}
    if not any(parsed.values()):
        raise BundleError(f"{path} has no LoRA in it: its {len(keys)} keys begin with {', '.join(keys[:3]) or 'none'}")
    by_layer: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for key, meaning in parsed.items():
        if meaning is None:
            raise BundleError(f"{path}: {key} is of no algorithm that can be merged; choose {READABLE}")
        tensors = by_layer[meaning.component, meaning.layer]
        if meaning.tensor in tensors:
            raise BundleError(f"{path}: {tensors[meaning.tensor]} and {key} are the same tensor of one layer")
        tensors[meaning.tensor] = key
    for tensors in by_layer.values():
        main = frozenset(tensors) - BESIDE
        if main not in FORMULAS and not (not main and "diff_b" in tensors):
            held = ", ".join(sorted(tensors))
            raise BundleError(
                f"{path}: the layer of {next(iter(tensors.values()))} has only {held}: tensors are missing"
            )
    return [Layer(component, name, tensors) for (component, name), tensors in by_layer.items()]


def _configs(path: Path, metadata: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
    """Read PEFT's settings by component: diffusers keeps them in the file, PEFT beside it in adapter_config.json.

    Pipelines name the component before each setting, ``save_lora_adapter`` and PEFT write those of one model.
    """
    beside = path.with_name("adapter_config.json")
    inside = metadata.get("lora_adapter_metadata")
    source = f"{path}: lora_adapter_metadata" if inside else str(beside)
    if not inside and not (path.name == "adapter_model.safetensors" and beside.is_file()):
        return {}
    try:
        settings = json.loads(inside if inside else read_regular(beside, MAX_SETTINGS))
        if not any(key.startswith(f"{component}.") for key in settings for component in COMPONENTS):
            settings = {f"{component}.{k}": v for component in COMPONENTS for k, v in settings.items()}
        configs: dict[str, dict[str, Any]] = {component: {} for component in COMPONENTS}
        for key, value in settings.items():
            component, _, name = key.partition(".")
            configs.setdefault(component, {})[name] = value
        for config in configs.values():
            for alpha in (config.get("lora_alpha") or 0, *(config.get("alpha_pattern") or {}).values()):
                if not math.isfinite(alpha):
                    raise ValueError(f"alpha is {alpha}")
            _check_patterns(config.get("alpha_pattern") or {})
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError, OSError, re.error) as error:
        raise BundleError(f"{source} is not PEFT's settings: {error}") from error
    return dict(configs)


def _check_patterns(patterns: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for patterns that may take long to match: PEFT's name layers."""
    if len(patterns) > MAX_PATTERNS:
        raise ValueError(f"alpha_pattern has {len(patterns)} entries; it may have {MAX_PATTERNS}")
    for pattern in patterns:
        if len(pattern) > MAX_PATTERN or SLOW.search(pattern) or len(re.findall(r"[*+{]", pattern)) > 2:
            raise ValueError(
                f"alpha_pattern has {shown(pattern)}, which may take long to match; write the layer's name"
            )
        re.compile(pattern)


def _doubt(
    path: Path,
    layers: Sequence[Layer],
    configs: Mapping[str, Mapping[str, Any]],
    shape: Callable[[str], list[int]],
) -> str:
    """Say that a file of diffusers or PEFT has several ranks in one component and no alpha; empty otherwise.

    diffusers' loader takes the first rank for the alpha of all layers, so it scales those of other ranks.
    """
    for component in COMPONENTS:
        if configs.get(component, {}).get("lora_alpha") is not None:
            continue
        own = [layer.keys for layer in layers if layer.component == component and "alpha" not in layer.keys]
        downs = [keys["down"] for keys in own if "down" in keys]
        ranks = sorted({size[0] for key in downs if not key.endswith(KOHYA_DOWN) and (size := shape(key))})
        if len(ranks) > 1:
            return (
                f"{path}: its layers of {component} have ranks {', '.join(map(str, ranks))} and it says no alpha; each "
                "is applied with alpha = rank. If it was trained with another, save it again with its metadata "
                "(save_lora_adapter), or scale it by --lora FILE:WEIGHT"
            )
    return ""


def _family(layers: Sequence[Layer], shape: Callable[[str], list[int]]) -> str | None:
    """Tell the model family that the keys look like; None where they do not tell."""
    names = [layer.name for layer in layers if layer.component == "unet"]
    if any(
        re.match(r"(transformer_)?(double_blocks|single_blocks|joint_blocks|transformer_blocks|single_tr)", n)
        for n in names
    ):
        return "a transformer such as Flux or SD 3"
    for layer in layers:
        first = layer.keys.get("down") or layer.keys.get("hada_w1_b") or layer.keys.get("diff")
        if first and re.search(r"attn2_to_[kv]$", layer.name):
            size = shape(first)
            if len(size) > 1 and size[1] in FAMILY_OF_WIDTH:
                return FAMILY_OF_WIDTH[size[1]]
    if any(layer.component == "text_encoder_2" for layer in layers) or any("put_blocks_" in n for n in names):
        return "SDXL"
    return None
