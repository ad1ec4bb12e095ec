"""Whether a value is a number within bounds. True and False are none, though Python counts them as numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import ArgumentError


def is_whole(value: Any, low: float | None = None, high: float | None = None) -> bool:
    """Whether this is a whole number, within the bounds that are given; NumPy's scalars are numbers too."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and _within(value, low, high)


def is_number(value: Any, low: float | None = None, high: float | None = None) -> bool:
    """Whether this is a real number, within the bounds that are given; NaN is within none."""
    real = (int, float, np.integer, np.floating)
    return isinstance(value, real) and not isinstance(value, bool) and _within(value, low, high)


def _within(value: Any, low: float | None, high: float | None) -> bool:
    return bool((low is None or low <= value) and (high is None or value <= high))


def positive(name: str, value: Any) -> int:
    """The value as an int; ``ArgumentError``, which calls it ``name``, where it is no whole number of at least 1."""
    if not is_whole(value, 1):
        raise ArgumentError(f"{name} is {value!r}; it must be a whole number of at least 1")
    return int(value)


def number(name: str, value: Any, low: float, high: float) -> float:
    """The value as a float; ``ArgumentError``, which calls it ``name``, where it is no number, ``low`` .. ``high``."""
    if not is_number(value, low, high):
        raise ArgumentError(f"{name} is {value!r}; it must be a number, {low:g} .. {high:g}")
    return float(value)
