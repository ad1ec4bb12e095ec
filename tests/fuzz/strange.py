"""Strategies of Hypothesis: values of every type, near the bounds and far beyond them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

import edgediff

from .values import NUMBERS, TEXTS


class Mute:
    """This object cannot be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Endless:
    """This sequence has no end."""

    def __iter__(self) -> Any:
        while True:
            yield 1

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, k: Any) -> int:
        return 1


class Odd(int):
    """This number compares with nothing."""

    def __lt__(self, other: object) -> bool:
        raise RuntimeError("no order")

    __gt__ = __le__ = __ge__ = __lt__


OBJECTS = (
    *(
        None,
        True,
        False,
        10**5000,
        -(10**5000),
        10**400,
        float("nan"),
        float("inf"),
        -float("inf"),
        1j,
        b"x",
        bytearray(9),
    ),
    *(Mute(), [Mute()], object(), object, len, print, lambda *_: None, Ellipsis, NotImplemented),
    *(range(3), range(10**9), {1, 2}, {"a": 1}, Path("x"), Path("/nowhere/x.png"), np.float32(3), np.int64(-1)),
    *(np.array(3), np.array([1, 2]), np.array(["ddim"]), np.array([None]), np.zeros((1, 4, 8, 8)), np.float64("nan")),
    *(Image.new("RGB", (8, 8)), edgediff.Apg(), edgediff.Schedule(), iter([1]), Endless(), Odd(3), "x" * 10**6),
    *([1.0] * 10**5, [[1]], [None], ["1", "0"], [10**400], ("a", "b"), [999, 0], [14.6, 1.0, 0.0], (0.2, 0.8), (1, 0)),
)

strange: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(OBJECTS),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=8),
    st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=3), st.none()), max_size=4),
    st.tuples(st.floats(), st.floats()),
    arrays.arrays(st.sampled_from((np.float32, np.uint8, np.int64, np.bool_)), arrays.array_shapes(max_side=4)),
)
