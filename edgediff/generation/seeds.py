"""What the pictures of a call start from: a seed each, or latents in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import Float32
from ..checks import is_whole
from ..errors import ArgumentError, shown

MAX_SEED = 2**64 - 1


def check_latents(values: Any, shape: tuple[int, ...]) -> Float32:
    """A caller's starting noise as float32 of ``shape``; ``ArgumentError`` where it is not that."""
    if not isinstance(values, np.ndarray) or values.shape != shape:
        given = f"have shape {values.shape}" if isinstance(values, np.ndarray) else f"are {type(values).__name__}"
        raise ArgumentError(f"latents {given}; this call needs {shape}")
    if values.dtype.kind not in "fiu":
        raise ArgumentError(f"latents are of type {values.dtype}; they must be numbers")
    with np.errstate(over="ignore"):  # seen below
        latents = values.astype(np.float32)
    if not np.isfinite(latents).all():
        raise ArgumentError("latents hold values that are not finite")
    return latents


def check_seeds(seed: int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    """One seed an image; ``ArgumentError`` for what is none, or another number of them. Random when None."""
    if seed is None:
        import secrets

        first = secrets.randbits(32)  # short enough to type again
        return tuple((first + k) % 2**32 for k in range(count))
    if isinstance(seed, np.ndarray) and seed.ndim == 0:
        seed = seed.item()
    seeds: tuple[Any, ...] = (seed,)
    if isinstance(seed, (int, np.integer)) and is_whole(seed):
        seeds = tuple(int(seed) + k for k in range(count))
    elif isinstance(seed, (list, tuple, range, np.ndarray)):
        if len(seed) != count:
            raise ArgumentError(f"{count} images need as many seeds; {len(seed)} were given")
        seeds = tuple(seed)
    for s in seeds:
        if not is_whole(s, 0, MAX_SEED):
            raise ArgumentError(f"seed is {shown(s)}; it must be a whole number from 0 to {MAX_SEED}")
    return tuple(int(s) for s in seeds)
