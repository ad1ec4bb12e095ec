"""The optional package edgediff-kernels: found, checked, and used in place of NumPy. It changes no result.

Its CPU twin rounds every product and sum as NumPy does, so pictures are the same to the bit with and without it.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, EngineError
from .planning import Plan
from .update import Row, remember, update

Array = NDArray[np.floating[Any]]
ABI = 2  # of the structures below and of the package's functions
MAX_HISTORY = 8
INSTALL = "the package edgediff-kernels is not installed (pip install ./cpp_ext in the repository)"

# How the types of Row's fields lie in memory.
_FORMATS: dict[Any, Any] = {float: np.float32, bool: np.int32, tuple[float, ...]: (np.float32, (MAX_HISTORY,))}
# A row as the kernels read it: the fields of Row, then rest, which is 1 - scale, and draw, the run's draws of noise so
# far. Row is the list of columns; its twin is ROW_COLUMNS in cpp_ext/src/types.h.
ROW = np.dtype(
    [(name, _FORMATS[kind]) for name, kind in get_type_hints(Row).items()] + [("rest", np.float32), ("draw", np.uint32)]
)
# What a run changes, in device memory, so that a captured graph serves the next run too; cpp_ext/src/types.h says what.
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
        ("noise", np.uint64),
    ]
)


@dataclass(frozen=True)
class KernelPackage:
    """The package, or None and why not."""

    module: Any
    why_not: str = ""


@cache
def find_package() -> KernelPackage:
    """Look for the package; once a process."""
    try:
        module = importlib.import_module("edgediff_kernels")
    except ModuleNotFoundError as error:
        return KernelPackage(None, INSTALL if error.name == "edgediff_kernels" else f"edgediff-kernels: {error}")
    except ImportError as error:
        return KernelPackage(None, f"edgediff-kernels cannot be loaded: {error}")
    described = f"edgediff-kernels {getattr(module, '__version__', '')}"
    if getattr(module, "ABI", None) != ABI:
        return KernelPackage(None, f"{described} is of another ABI; install it again")
    for name, dtype, theirs, size in (
        ("row", ROW, module.ROW_FIELDS, module.ROW_BYTES),
        ("header", HEADER, module.HEADER_FIELDS, module.HEADER_BYTES),
    ):
        differing = sorted({field[0] for field in {*fields_of(dtype)} ^ {*theirs}})
        if differing or dtype.itemsize != size:
            fields = ", ".join(differing) or "its size"
            return KernelPackage(None, f"{described} lays out a {name} otherwise ({fields}); install it again")
    return KernelPackage(module)


def fields_of(dtype: np.dtype[Any]) -> tuple[tuple[str, str, int], ...]:
    """The fields of a structure in memory order, each as (name, type, offset), as the package says its own."""
    fields = []
    for name, (kind, offset, *_) in (dtype.fields or {}).items():
        count = "".join(map(str, kind.shape))
        fields.append((name, f"{count}{kind.base.kind}{kind.base.itemsize}", offset))
    return tuple(fields)


def require_package() -> Any:
    """The package; ``EngineError`` with the reason where it cannot be used."""
    package = find_package()
    if package.module is None:
        raise EngineError(package.why_not)
    return package.module


def describe() -> str:
    """One line for people: which kernels run here."""
    package = find_package()
    if package.module is None:
        return f"NumPy; {package.why_not}"
    facts = package.module.facts()
    if facts["cuda"] is None:
        return f"edgediff-kernels {package.module.__version__}, built without CUDA"
    try:
        devices = f"{package.module.device_count()} CUDA devices"
    except package.module.CudaError as error:
        devices = str(error)
    return f"edgediff-kernels {package.module.__version__} (CUDA {facts['cuda']}); {devices}"


def advance(
    row: Row, x: Array, u: Array | None, c: Array, history: Sequence[Array], n: Array | None, keep: bool
) -> tuple[Array, Array | None]:
    """``x'`` and, where ``keep``, ``h'``: ``update.update`` and ``update.remember``, in one pass with the package.

    Arguments are those of ``update.update``. Other arrays than float32 in C order go to NumPy.
    """
    module = find_package().module
    used = list(history[: len(row.w)])
    arrays = [x, c, *used, *(v for v in (u, n) if v is not None)]
    if (
        module is None
        or len(row.w) > MAX_HISTORY
        or (row.d and n is None)
        or not all(v.dtype == np.float32 and v.flags.c_contiguous and v.shape == x.shape for v in arrays)
    ):
        after = update(row, x, u, c, used, n)
        return after, remember(row, x, u, c) if keep else None
    after, pushed = np.empty_like(x), np.empty_like(x) if keep else None
    module.update(
        x=x,
        u=u,
        c=c,
        history=used,
        n=n,
        next=after,
        pushed=pushed,
        **vars(row),
    )
    return after, pushed


def packed(plan: Plan, first_draw: int = 0) -> NDArray[Any]:
    """The rows as the kernels read them, dtype ``ROW``; noise is numbered from ``first_draw``.

    Raises:
        ArgumentError: more history than the kernels hold.
    """
    if plan.depth > MAX_HISTORY:
        raise ArgumentError(f"the plan reads {plan.depth} past values; the kernels hold a history of {MAX_HISTORY}")
    records = []
    draw = first_draw
    for row in plan.rows:
        records.append(record(row, draw))
        draw += row.d != 0
    return np.array(records, ROW)


def record(row: Row, draw: int) -> tuple[Any, ...]:
    """The values of one row in the order of ``ROW``; its noise is the run's draw number ``draw``."""
    w = (*row.w, *[0.0] * (MAX_HISTORY - len(row.w)))
    values = vars(row) | {"w": w, "rest": 1 - row.scale, "draw": draw}
    return tuple(values[name] for name in ROW.names or ())
