"""The optional package edgediff-kernels: found, checked, and used in place of NumPy. It changes no result.

Its CPU twin rounds every product and sum as NumPy does, so pictures are the same to the bit with and without it.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError
from . import kernel_layout
from .kernel_layout import HEADER, MAX_HISTORY, ROW, STATE, fields_of
from .update import Row, remember, update

Array = NDArray[np.floating[Any]]
ABI = 3  # of the structures and of the package's functions
INSTALL = "the package edgediff-kernels is not installed (pip install ./cpp_ext in the repository)"


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
    for name, dtype in (("row", ROW), ("header", HEADER), ("state", STATE)):
        theirs, size = (getattr(module, f"{name.upper()}_{what}") for what in ("FIELDS", "BYTES"))
        differing = sorted({field[0] for field in {*fields_of(dtype)} ^ {*theirs}})
        if differing or dtype.itemsize != size:
            fields = ", ".join(differing) or "its size"
            return KernelPackage(None, f"{described} lays out a {name} otherwise ({fields}); install it again")
    for name in kernel_layout.CONSTANTS:
        if getattr(module, name) != getattr(kernel_layout, name):
            return KernelPackage(None, f"{described} has another {name}; install it again")
    return KernelPackage(module)


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
    return f"edgediff-kernels {package.module.__version__}"


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
