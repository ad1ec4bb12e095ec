"""How near two results are: pictures in dB, tensors by their relative error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ArgumentError

SAME = 99.0  # dB; stands for pictures that are equal


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """The peak signal-to-noise ratio of two uint8 pictures in dB, 99 at most; ``ArgumentError`` for different sizes."""
    if a.shape != b.shape:
        raise ArgumentError(f"pictures of shapes {a.shape} and {b.shape} cannot be compared")
    error = float(np.mean((a.astype(np.float64) - b) ** 2))
    return SAME if error == 0 else min(SAME, 10 * float(np.log10(255**2 / error)))


def relative(values: NDArray[Any], reference: NDArray[Any]) -> float:
    """The 2-norm of the difference over that of ``reference``; infinite where ``values`` is not finite, or of another
    shape.
    """
    if values.shape != reference.shape or not np.isfinite(values).all():
        return float("inf")
    return float(np.linalg.norm(values.astype(np.float64) - reference)) / (float(np.linalg.norm(reference)) or 1.0)
