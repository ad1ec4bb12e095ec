"""Values that nobody should give, each made anew."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np


class Mute:
    """An object that cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def endless() -> Iterator[int]:
    return count()


STRANGERS: dict[str, Callable[[], Any]] = {
    "long number": lambda: 10**5000,
    "negative long number": lambda: -(10**5000),
    "large number": lambda: 10**400,
    "nan": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "mute": Mute,
    "mute in a list": lambda: [Mute()],
    "array": lambda: np.array([1, 2]),
    "array of names": lambda: np.array(["ddim", "cfg"]),
    "no array": lambda: np.array([]),
    "array of objects": lambda: np.array([None, 1]),
    "complex": lambda: 1 + 2j,
    "bytes": lambda: b"ddim",
    "surrogate": lambda: "\ud800",
    "long text": lambda: "x" * 10**6,
    "long list": lambda: ["a"] * 10**6,
    "long range": lambda: range(10**9),
    "endless": endless,
    "texts for numbers": lambda: ["1", "0"],
    "long number in a list": lambda: [10**5000, 1],
    "dict": dict,
    "type": lambda: int,
    "date": lambda: np.datetime64("2020"),
}
