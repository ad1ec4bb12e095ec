"""What a U-Net is told besides the latents and the time: texts, sizes, a guidance scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..arrays import Float32
from ..bundle.manifest import SIZES_AND_SCORE, Bundle
from ..errors import ArgumentError

# What SDXL's refiner was trained to take for good and for bad pictures.
AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5
GUIDANCE_UNIT = 1000.0  # the guidance scale is embedded as timesteps are, in thousandths


class Given(Protocol):
    """The arguments of a call that this module reads."""

    @property
    def original_size(self) -> tuple[int, int] | None: ...
    @property
    def crops_coords_top_left(self) -> tuple[int, int] | None: ...
    @property
    def target_size(self) -> tuple[int, int] | None: ...
    @property
    def aesthetic_score(self) -> float | None: ...
    @property
    def negative_aesthetic_score(self) -> float | None: ...


@dataclass(frozen=True)
class Sizes:
    """``time_ids`` with and without the prompt, float32 (6,) or (5,); None for models that take none."""

    positive: Float32 | None = None
    negative: Float32 | None = None


@dataclass(frozen=True)
class Condition:
    """One image's texts and sizes, as one call of the U-Net reads them."""

    hidden: Float32 | None  # (tokens, width)
    pooled: Float32 | None  # (width,)
    time_ids: Float32 | None


def check_sizes(bundle: Bundle, given: Given, width: int, height: int) -> Sizes:
    """SDXL's micro-conditioning (Podell et al. 2023, section 2.2), with the picture's own size where none is given.

    Raises:
        ArgumentError: an argument that this model does not take, or of another form.
    """
    taken = bundle.unet_input("time_ids")
    scored = taken is not None and taken.shape[-1] == SIZES_AND_SCORE
    sizes = ("original_size", "crops_coords_top_left") + (() if scored else ("target_size",))
    known = {*sizes, *(("aesthetic_score", "negative_aesthetic_score") if scored else ())} if taken else set()
    for name in (
        "original_size",
        "crops_coords_top_left",
        "target_size",
        "aesthetic_score",
        "negative_aesthetic_score",
    ):
        value = getattr(given, name)
        if value is None:
            continue
        if name not in known:
            raise ArgumentError(f"{name} is {value!r}; the U-Net of bundle {bundle.name!r} takes none")
        if name.endswith("score"):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 10:
                raise ArgumentError(f"{name} is {value!r}; it must be a number, 0 .. 10")
        elif not _pair(value, 0 if name.startswith("crops") else 1):
            raise ArgumentError(f"{name} is {value!r}; it must be (height, width) in pixels")
    if taken is None:
        return Sizes()
    original, crop = given.original_size or (height, width), given.crops_coords_top_left or (0, 0)
    if not scored:
        same = np.array([*original, *crop, *(given.target_size or (height, width))], np.float32)
        return Sizes(same, same)
    good = AESTHETIC_SCORE if given.aesthetic_score is None else given.aesthetic_score
    bad = NEGATIVE_AESTHETIC_SCORE if given.negative_aesthetic_score is None else given.negative_aesthetic_score
    # diffusers' refiner steers away from an uncropped picture, whatever the crop.
    return Sizes(np.array([*original, *crop, good], np.float32), np.array([*original, 0, 0, bad], np.float32))


def _pair(value: Any, least: int) -> bool:
    whole = (int, np.integer)
    return (
        isinstance(value, (tuple, list))
        and len(value) == 2
        and all(isinstance(v, whole) and not isinstance(v, bool) and least <= v <= 1 << 20 for v in value)
    )


def embed_guidance(scale: float, width: int) -> Float32:
    """``timestep_cond`` (width,) of a guidance scale: sines and cosines of its excess over 1 (Luo et al. 2023,
    https://arxiv.org/abs/2310.04378; the positional encoding of Vaswani et al. 2017, frequencies 1 .. 1/10000).
    """
    half = width // 2
    frequencies = np.exp(np.arange(half, dtype=np.float32) * -(np.log(np.float32(10000)) / np.float32(half - 1)))
    angles = np.float32((scale - 1) * GUIDANCE_UNIT) * frequencies
    out: Float32 = np.concatenate([np.sin(angles), np.cos(angles), np.zeros(width % 2, np.float32)])
    return out.astype(np.float32)


def stacked(conditions: Sequence[Condition]) -> Mapping[str, Float32]:
    """The U-Net's inputs for a batch of conditions with texts of one length."""
    arrays = {
        "encoder_hidden_states": [c.hidden for c in conditions],
        "text_embeds": [c.pooled for c in conditions],
        "time_ids": [c.time_ids for c in conditions],
    }
    return {name: np.stack([v for v in some if v is not None]) for name, some in arrays.items() if some[0] is not None}
