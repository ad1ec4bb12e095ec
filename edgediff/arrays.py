"""Arrays of numbers: their types, and whether all values are finite."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import EngineError

Float32 = NDArray[np.float32]


def require_finite(name: str, array: NDArray[Any]) -> None:
    """Raise ``EngineError`` naming the part whose output is not finite (in fp16 an overflow shows as a black image)."""
    if not finite(array):
        bad = int(array.size - np.count_nonzero(np.isfinite(array)))
        raise EngineError(f"{name} gave {bad} of {array.size} values that are not finite (NaN or infinity)")


def finite(array: NDArray[Any]) -> bool:
    """Whether all values are finite, in one pass without a temporary where they are."""
    flat = array.reshape(-1)
    with np.errstate(all="ignore"):  # squares may overflow; then the exact check decides
        return bool(np.isfinite(np.dot(flat, flat))) or bool(np.isfinite(flat).all())
