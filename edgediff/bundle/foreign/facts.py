"""What the configs of a foreign folder say of its model: the latents, the sizes, what the U-Net was trained on.

What a config leaves out is taken as Stable Diffusion has it, and noted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import BundleError, shown
from ..strict_json import read_object
from .adaptation import Adaptation

# diffusers' own default of AutoencoderKL, and what SDXL's says.
SCALE, LARGE_SCALE = 0.18215, 0.13025
FACTOR = 8  # pixels a side of a latent cell
KNOWN_UNET = {
    "class_embed_type": (None,),
    "num_class_embeds": (None,),
    "addition_embed_type": (None, "text_time"),
    "encoder_hid_dim_type": (None,),
}


@dataclass
class Configs:
    """The configs of a folder's parts; a part without one has an empty one. ``notes`` grows as facts are assumed."""

    root: Path
    notes: list[str] = field(default_factory=list)

    def of(self, folder: str, name: str = "config.json") -> dict[str, Any]:
        path = self.root / folder / name
        return read_object(self.root, path) if path.is_file() else {}

    def assumed(self, what: str, value: Any) -> Any:
        """Note a fact that no config tells, and return it."""
        self.notes.append(f"{what} is assumed to be {value}: no config says")
        return value


def whole(config: Mapping[str, Any], key: str, where: str) -> int | None:
    """A positive number of a config; None where it says none; ``BundleError`` for anything else."""
    value = config.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 20:
        raise BundleError(f"{where}: {key} is {shown(value)}; it must be a positive number")
    return value


def blocks(config: Mapping[str, Any], where: str) -> int | None:
    """How many levels of resolution a network has; None where its config does not say."""
    widths = config.get("block_out_channels")
    if widths is None:
        return None
    if not isinstance(widths, list) or not 1 <= len(widths) <= 12:
        raise BundleError(f"{where}: block_out_channels is {shown(widths)}; it must be a list of 1 to 12 widths")
    return len(widths)


def check_unet(config: Mapping[str, Any]) -> None:
    """Raise ``BundleError`` for a U-Net that the runtime cannot run."""
    for key, values in KNOWN_UNET.items():
        if config.get(key) not in values:
            raise BundleError(f"unet: {key} is {shown(config.get(key))}, which this version cannot run")
    given, taken = whole(config, "out_channels", "unet"), whole(config, "in_channels", "unet")
    if given is not None and taken is not None and given > taken:
        raise BundleError(f"unet: it gives {given} channels for {taken}; learned variances are not supported")


def latent_facts(configs: Configs, decoder: Adaptation, large: bool) -> dict[str, Any]:
    """Describe the latents, as a manifest does."""
    vae, unet = configs.of("vae_decoder") or configs.of("vae_encoder"), configs.of("unet")
    for key in ("latents_mean", "latents_std"):
        if vae.get(key) is not None:
            raise BundleError(f"vae_decoder: {key} is {shown(vae[key])}, which this version cannot run")
    declared = decoder.inputs["latent_sample"].shape
    channels: Any = declared[1] if len(declared) == 4 else "?"
    if not isinstance(channels, int):
        channels = whole(vae, "latent_channels", "vae_decoder") or configs.assumed("the number of latent channels", 4)
    levels = blocks(vae, "vae_decoder")
    factor = configs.assumed("the factor of the autoencoder", FACTOR) if levels is None else 2 ** (levels - 1)
    if factor == 1:
        raise BundleError("vae_decoder: its config names one level, so that it makes latents no smaller than pictures")
    scale = vae.get("scaling_factor")
    if scale is None:
        scale = configs.assumed("the autoencoder's scaling_factor", LARGE_SCALE if large else SCALE)
    if not isinstance(scale, (int, float)) or isinstance(scale, bool) or not 0 < scale < 1e6:
        raise BundleError(f"vae_decoder: scaling_factor is {shown(scale)}; it must be a positive number")
    steps = blocks(unet, "unet")
    if steps is None:
        steps = configs.assumed("the number of the U-Net's levels", 3 if large else 4)
    # diffusers' pipelines of these families leave shift_factor out.
    return {"channels": channels, "factor": factor, "scale": float(scale), "shift": 0.0,
            "size_multiple": factor * 2 ** (steps - 1)}  # fmt: skip


def default_size(configs: Configs, unet: Adaptation, latent: Mapping[str, Any], large: bool) -> dict[str, int]:
    """Width and height of a picture, in pixels: what the graph is made for, or what the U-Net was trained on."""
    cells: Any = configs.of("unet").get("sample_size")
    cells = list(cells) if isinstance(cells, list) and len(cells) == 2 else [cells, cells]
    shape = unet.inputs["sample"].shape
    out = {}
    for name, axis, told in (("height", 2, cells[0]), ("width", 3, cells[1])):
        fixed = shape[axis] if len(shape) == 4 else "?"
        if isinstance(fixed, int):
            side = fixed
        elif isinstance(told, int) and not isinstance(told, bool) and told > 0:
            side = told
        else:
            side = configs.assumed(f"the default {name} in latent cells", 128 if large else 64)
        out[name] = side * latent["factor"]
    return out
