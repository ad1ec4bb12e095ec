"""SDXL's micro-conditioning: the sizes, crop and scores that its U-Nets are told beside the prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Float32
from ..bundle.manifest import SIZES_AND_SCORE, Bundle
from ..checks import is_whole, number
from ..errors import ArgumentError, shown
from .arguments import Arguments

# What SDXL's refiner was trained to take for good and for bad pictures.
AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5
SIZES = ("original_size", "crops_coords_top_left", "target_size")
SCORES = ("aesthetic_score", "negative_aesthetic_score")
MAX_SIDE = 1 << 20  # pixels


@dataclass(frozen=True)
class Sizes:
    """``time_ids`` with and without the prompt, float32 (6,) or (5,); None for models that take none."""

    positive: Float32 | None = None
    negative: Float32 | None = None


def check_sizes(bundle: Bundle, arguments: Arguments, width: int, height: int) -> Sizes:
    """SDXL's micro-conditioning (Podell et al. 2023, section 2.2), with the picture's own size where none is given.

    Raises:
        ArgumentError: an argument that this model does not take, or of another form.
    """
    taken = bundle.unet_input("time_ids")
    scored = taken is not None and taken.shape[-1] == SIZES_AND_SCORE
    known: tuple[str, ...] = ()
    if taken is not None:
        known = (*SIZES[:2], *SCORES) if scored else SIZES
    for name in (*SIZES, *SCORES):
        value = getattr(arguments, name)
        if value is None:
            continue
        if name not in known:
            raise ArgumentError(f"{name} is {shown(value)}; the U-Net of bundle {bundle.name!r} takes none")
        if name in SCORES:
            number(name, value, 0, 10)
        elif not _is_pair(value, 0 if name.startswith("crops") else 1):
            raise ArgumentError(f"{name} is {shown(value)}; it must be (height, width) in pixels")
    if taken is None:
        return Sizes()
    original, crop = arguments.original_size or (height, width), arguments.crops_coords_top_left or (0, 0)
    if not scored:
        same = np.array([*original, *crop, *(arguments.target_size or (height, width))], np.float32)
        return Sizes(same, same)
    good, bad = arguments.aesthetic_score, arguments.negative_aesthetic_score
    good = AESTHETIC_SCORE if good is None else good
    bad = NEGATIVE_AESTHETIC_SCORE if bad is None else bad
    # diffusers' refiner steers away from an uncropped picture, whatever the crop.
    return Sizes(np.array([*original, *crop, good], np.float32), np.array([*original, 0, 0, bad], np.float32))


def _is_pair(value: Any, least: int) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(is_whole(v, least, MAX_SIDE) for v in value)
