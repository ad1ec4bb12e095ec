"""Whether a value is a number within bounds, or one of some names. True and False are no numbers, though Python counts
them so.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ArgumentError, choices, shown

LONGEST_PATH = 4096


def is_whole(value: Any, low: float | None = None, high: float | None = None) -> bool:
    """Whether this is a whole number, within the bounds that are given; NumPy's scalars are numbers too."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and _within(value, low, high)


def is_number(value: Any, low: float | None = None, high: float | None = None) -> bool:
    """Whether this is a real number, within the bounds that are given; NaN is within none."""
    real = (int, float, np.integer, np.floating)
    return isinstance(value, real) and not isinstance(value, bool) and _within(value, low, high)


def _within(value: Any, low: float | None, high: float | None) -> bool:
    # A plain number: float32 overflows against a float's bounds, and a subclass may compare as it likes.
    value = int.__add__(int(value), 0) if isinstance(value, (int, np.integer)) else float.__add__(float(value), 0.0)
    return bool((low is None or low <= value) and (high is None or value <= high))


def positive(name: str, value: Any) -> int:
    """The value as an int; ``ArgumentError``, which calls it ``name``, where it is no whole number of at least 1."""
    if not is_whole(value, 1):
        raise ArgumentError(f"{name} is {shown(value)}; it must be a whole number of at least 1")
    return int(value)


def number(name: str, value: Any, low: float, high: float) -> float:
    """The value as a float; ``ArgumentError``, which calls it ``name``, where it is no number, ``low`` .. ``high``."""
    if not is_number(value, low, high):
        raise ArgumentError(f"{name} is {shown(value)}; it must be a number, {low:g} .. {high:g}")
    return float(value)


def file_path(name: str, value: Any) -> Path:
    """The value as a path; ``ArgumentError``, which calls it ``name``, for what names no file on any system."""
    if not isinstance(value, (str, Path)):
        raise ArgumentError(f"{name} is {shown(value)}; it must be a path")
    if len(str(value)) > LONGEST_PATH or "\0" in str(value):
        raise ArgumentError(f"{name} is {shown(str(value))}; a path has at most {LONGEST_PATH} characters, and no NUL")
    return Path(value)


def flag(name: str, value: Any) -> bool:
    """The value as a bool; ``ArgumentError``, which calls it ``name``, where it is neither True nor False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ArgumentError(f"{name} is {shown(value)}; it must be True or False")
    return bool(value)


def one_of(what: str, value: Any, known: Collection[str], more: str = "") -> str:
    """The value, one of the names ``known``; ``ArgumentError`` otherwise, which calls it ``what`` and ends in ``more``.

    An array compared with a name has no truth value, so only text is looked up.
    """
    if not isinstance(value, str) or value not in known:
        raise ArgumentError(f"no {what} {shown(value)}; choose from {choices(known)}{more}")
    return value
