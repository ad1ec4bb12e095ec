"""The CPU twin against the NumPy reference: the same bits, whatever the row, the shape and the history."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from edgediff.sampling.kernels import MAX_HISTORY, advance, find_package
from edgediff.sampling.planning import plan
from edgediff.sampling.samplers import SAMPLERS
from edgediff.sampling.schedule import Schedule
from edgediff.sampling.update import Row, remember, update

kernels = pytest.importorskip("edgediff_kernels", reason="edgediff-kernels is not installed")

SCHEDULE = Schedule()
SHAPES = [(1, 4, 64, 64), (1, 4, 8, 8), (2, 3, 7, 5), (3, 4, 33, 17), (1, 1, 1, 1), (1, 4, 128, 96), (5, 9, 2, 3)]


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def random_row(rng: np.random.Generator) -> Row:
    """Any numbers, zeros among them, as no sampler need have them."""

    def value() -> float:
        return float(rng.choice([0.0, 1.0, rng.normal(), 10 * rng.normal()], p=[0.15, 0.1, 0.6, 0.15]))

    numbers: dict[str, Any] = {column.name: value() for column in fields(Row)}
    w = tuple(value() for _ in range(rng.integers(MAX_HISTORY + 1)))
    row = Row(**(numbers | {"w": w, "guided": True}))
    return row if rng.integers(2) else replace(row, bu=0.0, qu=0.0, guided=False)


def both(row: Row, x, u, c, history, n) -> None:
    """The twin must be at work, and equal the reference."""
    assert find_package().module is not None, find_package().why_not
    copies = [v if v is None else v.copy() for v in (x, u, c, n, *history)]
    after, pushed = advance(row, x, u, c, history, n, True)
    np.testing.assert_array_equal(after, update(row, x, u, c, history, n))
    np.testing.assert_array_equal(pushed, remember(row, x, u, c))
    assert after.dtype == pushed.dtype == np.float32
    for given, copy in zip((x, u, c, n, *history), copies, strict=True):
        assert given is None or np.array_equal(given, copy)


@pytest.mark.parametrize("seed", range(500))
def test_random_rows_give_the_same_bits(seed: int) -> None:
    rng = np.random.default_rng(seed)
    row, shape = random_row(rng), SHAPES[seed % len(SHAPES)]
    history = [normal(rng, shape) for _ in row.w]
    u = normal(rng, shape) if row.guided else None
    both(row, normal(rng, shape), u, normal(rng, shape), history, normal(rng, shape) if row.d else None)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_every_row_of_every_sampler(sampler: str, scale: float) -> None:
    rng = np.random.default_rng(0)
    shape = (2, 4, 9, 7)
    table = plan(SCHEDULE, sampler, 9, scale)
    for k, row in enumerate(table.rows):
        history = [normal(rng, shape) for _ in range(min(k, table.depth))]
        u = normal(rng, shape) if row.guided else None
        both(row, normal(rng, shape), u, normal(rng, shape), history, normal(rng, shape))


@pytest.mark.parametrize("shape", [(1, 4, 700, 701), (1, 1, 1, 2**20 + 1), (1, 1, 2, 2**20 + 63)])
def test_large_arrays_are_shared_among_threads(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    row = plan(SCHEDULE, "dpmpp_2m", 5, 7.5).rows[2]
    both(row, normal(rng, shape), normal(rng, shape), normal(rng, shape), [normal(rng, shape)], None)


@pytest.mark.parametrize("kind", ["float64", "strided", "broadcast"])
def test_other_arrays_go_to_numpy(kind: str) -> None:
    rng = np.random.default_rng(2)
    row = plan(SCHEDULE, "ddim", 5, 7.5).rows[2]
    x, u, c = (normal(rng, (1, 4, 8, 8)) for _ in range(3))
    if kind == "float64":
        x, u, c = (v.astype(np.float64) for v in (x, u, c))
    elif kind == "strided":
        x, u, c = (np.ascontiguousarray(v.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2) for v in (x, u, c))
    else:
        u = u[:, :1]
    after, pushed = advance(row, x, u, c, [], None, True)
    np.testing.assert_array_equal(after, update(row, x, u, c))
    np.testing.assert_array_equal(pushed, remember(row, x, u, c))
    assert after.dtype == x.dtype


ARRAYS = {"x": (2, 3), "c": (2, 3), "next": (2, 3)}
COLUMNS = vars(plan(SCHEDULE, "ddim", 4, 1.0).rows[0])


def call(**changed):
    arrays = {name: np.ones(shape, np.float32) for name, shape in ARRAYS.items()}
    kernels.update(**(arrays | {"u": None, "n": None, "history": [], "pushed": None} | COLUMNS | changed))


def test_a_good_call_passes() -> None:
    call()


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": np.ones((2, 3))}, TypeError, "incompatible"),
        ({"next": np.ones((2, 3))}, TypeError, "incompatible"),
        ({"c": np.ones((2, 6), np.float32)[:, ::2]}, TypeError, "incompatible"),
        ({"c": [1.0, 2.0]}, TypeError, "incompatible"),
        ({"c": np.ones((2, 4), np.float32)}, ValueError, "c has 8 values; x has 6"),
        ({"u": np.ones((2, 4), np.float32)}, ValueError, "u has 8 values; x has 6"),
        ({"next": np.ones(5, np.float32)}, ValueError, "next has 5 values; x has 6"),
        ({"pushed": np.ones(7, np.float32)}, ValueError, "pushed has 7 values; x has 6"),
        ({"history": [np.ones(4, np.float32)], "w": (1.0,)}, ValueError, "history has 4 values; x has 6"),
        ({"history": [np.ones((2, 3))], "w": (1.0,)}, TypeError, "incompatible"),
        ({"w": (1.0,) * 9}, ValueError, "the row has 9 history weights; the kernels hold 8"),
        ({"d": 1.0}, ValueError, "adds noise"),
        ({"a": "one"}, TypeError, "incompatible"),
        ({"guided": 2.5}, TypeError, "incompatible"),
        ({"kb": 1.0}, TypeError, "incompatible"),
    ],
)
def test_bad_arrays_are_typed_errors(changed, error, message: str) -> None:
    with pytest.raises(error, match=message):
        call(**changed)


@pytest.mark.parametrize("name", COLUMNS)
def test_every_column_is_asked_for(name: str) -> None:
    arrays = {key: np.ones(shape, np.float32) for key, shape in ARRAYS.items()}
    columns = {key: value for key, value in COLUMNS.items() if key != name}
    with pytest.raises(TypeError, match="incompatible"):
        kernels.update(**arrays, u=None, n=None, history=[], pushed=None, **columns)


def test_read_only_results_are_refused() -> None:
    result = np.ones((2, 3), np.float32)
    result.flags.writeable = False
    with pytest.raises(TypeError, match="incompatible"):
        call(next=result)
