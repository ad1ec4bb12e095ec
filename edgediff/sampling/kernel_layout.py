"""What the kernels read: a plan's rows, what a run changes, and where a loop's buffers lie. Their twins are in C++."""

from __future__ import annotations

from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError
from .planning import Plan
from .update import Row

MAX_HISTORY = 8
NOT_BAD = 0x7FFFFFFF  # bad_step of a header where every step was finite
BAD_OUTPUT, BAD_STATE, BAD_PIXELS = 1, 2, 4  # bad_what: of the U-Net, of the sampler, of the decoder
CONSTANTS = ("MAX_HISTORY", "NOT_BAD", "BAD_OUTPUT", "BAD_STATE", "BAD_PIXELS")

# How the types of Row's fields lie in memory.
_FORMATS: dict[Any, Any] = {float: np.float32, bool: np.int32, tuple[float, ...]: (np.float32, (MAX_HISTORY,))}
# A row as the kernels read it: the fields of Row, then rest, which is 1 - scale, and draw, the run's draws of noise so
# far. Row is the list of columns; its twin is ROW_COLUMNS in cpp_ext/cuda/types.h.
ROW = np.dtype(
    [(name, _FORMATS[kind]) for name, kind in get_type_hints(Row).items()] + [("rest", np.float32), ("draw", np.uint32)]
)
# What a run changes, in device memory, so that a captured graph serves the next run too. cpp_ext/cuda/types.h says
# what each is.
HEADER = np.dtype(
    [
        ("step", np.int32),
        ("done", np.uint32),
        ("steps", np.int32),
        ("depth", np.int32),
        ("copies", np.int32),
        ("bad_step", np.int32),
        ("bad_what", np.uint32),
        ("threads", np.uint32),
        ("start", np.float32),
        ("drawn", np.int32),
        ("first_draw", np.uint32),
        ("rounds", np.uint32),
        ("noise", np.uint64),
    ]
)
# Where a loop's buffers lie, and what they hold: fixed while a captured graph lives. A kernel takes it by value.
BUFFERS = ("header", "rows", "seeds", "x", "history", "x0", "output", "input", "timestep")
STATE = np.dtype(
    [(name, np.uint64) for name in BUFFERS]
    + [("size", np.int64), ("stride", np.int64), ("batch", np.int32)]
    + [(f"{name}_type", np.int32) for name in ("input", "output", "timestep")]
)


def header_of(**values: float) -> tuple[float, ...]:
    """A header in the order of ``HEADER``, of a run that begins; what is not named is 0."""
    values["bad_step"] = NOT_BAD
    return tuple(values.get(name, 0) for name in HEADER.names or ())


def fields_of(dtype: np.dtype[Any]) -> tuple[tuple[str, str, int], ...]:
    """The fields of a structure in memory order, each as (name, type, offset), as the package says its own."""
    fields = []
    for name, (kind, offset, *_) in (dtype.fields or {}).items():
        count = "".join(map(str, kind.shape))
        fields.append((name, f"{count}{kind.base.kind}{kind.base.itemsize}", offset))
    return tuple(fields)


def packed(plan: Plan) -> NDArray[Any]:
    """The rows as the kernels read them, dtype ``ROW``, read-only; their noise is numbered from 0. A plan keeps them.

    Raises:
        ArgumentError: more history than the kernels hold.
    """
    if (known := vars(plan).get("_packed")) is not None:
        return known  # type: ignore[no-any-return]
    if plan.depth > MAX_HISTORY:
        raise ArgumentError(f"the plan reads {plan.depth} past values; the kernels hold a history of {MAX_HISTORY}")
    records = []
    draw = 0
    for row in plan.rows:
        records.append(record(row, draw))
        draw += row.d != 0
    table = np.array(records, ROW)
    table.flags.writeable = False
    object.__setattr__(plan, "_packed", table)  # a plan never changes; it is no field, and goes into no comparison
    return table


def record(row: Row, draw: int) -> tuple[Any, ...]:
    """The values of one row in the order of ``ROW``; its noise is the run's draw number ``draw``."""
    w = (*row.w, *[0.0] * (MAX_HISTORY - len(row.w)))
    values = vars(row) | {"w": w, "rest": 1 - row.scale, "draw": draw}
    return tuple(values[name] for name in ROW.names or ())
