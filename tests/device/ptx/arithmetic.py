"""What an instruction computes, for all threads at once; in the words of the PTX ISA manual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .parsing import BYTES, PtxError

Array = NDArray[Any]
NAN16 = 0x7FFF  # the NaN that a conversion to half gives
PREDICATE = "pred"


Compute = Callable[..., Any]


class Form(NamedTuple):
    """A form is an opcode's types and its function."""

    result: str
    takes: tuple[str, ...]
    compute: Compute


def dtype_of(kind: str) -> Any:
    """NumPy's type of a PTX type; bits are unsigned."""
    if kind == PREDICATE:
        return np.dtype(np.bool_)
    letter = {"b": "u", "u": "u", "s": "i", "f": "f"}[kind[0]]
    return np.dtype(f"{letter}{BYTES[kind]}")


def form(opcode: str) -> Form:
    """The form of an opcode without memory: "mul.wide.u32", "setp.lt.f32".

    Raises:
        PtxError: it is not known here, or it leaves the rounding to whoever compiles the PTX on.
    """
    name, *modifiers, kind = opcode.split(".")
    of = ".".join(modifiers)
    if kind == "f32":
        found = _float_form(name, of)
    elif name == "cvt":
        found = _conversion(of, kind)
    else:
        found = _whole_form(name, of, kind)
    if found is None:
        hint = "; it may be fused into another" if kind == "f32" and name in ("add", "sub", "mul", "mad") else ""
        raise PtxError(f"no instruction {opcode} is known here{hint}")
    return found


def _float_form(name: str, of: str) -> Form | None:
    f32 = "f32"
    two: dict[str, Compute] = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}
    rough: dict[str, Compute] = {"sin": np.sin, "cos": np.cos}  # a GPU's are good to 1e-6
    picked: dict[str, Compute] = {"min": np.fmin, "max": np.fmax}  # NaN gives way to a number
    bits: dict[str, Compute] = {"neg": np.negative, "abs": np.abs, "mov": np.copy}
    if of == "rn" and name in two:
        return Form(f32, (f32, f32), two[name])
    if of == "rn" and name == "fma":
        return Form(f32, (f32, f32, f32), fused)
    if of == "rn" and name == "sqrt":
        return Form(f32, (f32,), np.sqrt)
    if of == "approx" and name in rough:
        return Form(f32, (f32,), lambda x: rough[name](x.astype(np.float64)).astype(np.float32))
    if of == "" and name in picked:
        return Form(f32, (f32, f32), picked[name])
    if of == "" and name in bits:
        return Form(f32, (f32,), bits[name])
    if of == "" and name == "selp":
        return Form(f32, (f32, f32, PREDICATE), lambda x, y, p: np.where(p, x, y))
    if name == "setp":
        return _comparison(of, f32)
    return _conversion(of, f32) if name == "cvt" else None


def _whole_form(name: str, of: str, kind: str) -> Form | None:
    two: dict[str, Compute] = {"add": np.add, "sub": np.subtract, "mul.lo": np.multiply}
    two |= {"div": _divided, "rem": lambda x, y: x - _divided(x, y) * y, "min": np.minimum, "max": np.maximum}
    two |= {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
    full = f"{name}.{of}".rstrip(".")
    if full in two:
        return Form(kind, (kind, kind), two[full])
    if full == "mad.lo":
        return Form(kind, (kind, kind, kind), lambda x, y, z: x * y + z)
    if full in ("mul.wide", "mul.hi", "mad.wide") and kind in ("u32", "s32"):
        wide = kind[0] + "64"

        def product(x: Array, y: Array) -> Any:
            return x.astype(dtype_of(wide)) * y.astype(dtype_of(wide))

        if full == "mul.hi":
            return Form(kind, (kind, kind), lambda x, y: (product(x, y) >> 32).astype(dtype_of(kind)))
        if full == "mul.wide":
            return Form(wide, (kind, kind), product)
        return Form(wide, (kind, kind, wide), lambda x, y, z: product(x, y) + z)
    if full in ("shl", "shr"):
        return Form(kind, (kind, "u32"), lambda x, by: _shifted(x, by, full == "shl"))
    if name == "setp":
        return _comparison(of, kind)
    if full == "selp":
        return Form(kind, (kind, kind, PREDICATE), lambda x, y, p: np.where(p, x, y))
    one: dict[str, Compute] = {"mov": np.copy, "not": np.invert, "neg": np.negative, "cvta.to.global": np.copy}
    return Form(kind, (kind,), one[full]) if full in one else None


def _comparison(of: str, kind: str) -> Form | None:
    ordered = {"eq": np.equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
    ordered |= {"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal}
    opposite = {"neu": "eq", "geu": "lt", "gtu": "le", "leu": "gt", "ltu": "ge"}  # true of NaN
    if of in ordered:
        compare: Compute = ordered[of]
    elif of == "ne":
        compare = lambda x, y: (x < y) | (x > y)  # noqa: E731
    elif of in opposite:
        compare = lambda x, y: ~ordered[opposite[of]](x, y)  # noqa: E731
    elif of in ("nan", "num"):
        compare = lambda x, y: (np.isnan(x) | np.isnan(y)) == (of == "nan")  # noqa: E731
    else:
        return None
    return Form(PREDICATE, (kind, kind), compare)


def _conversion(of: str, source: str) -> Form | None:
    """``cvt.{of}.{source}``, where ``of`` ends in the result's type."""
    *rounding, result = of.split(".")
    how, both = ".".join(rounding), (result[0] + source[0])
    to = dtype_of(result)
    if (source, result, how) == ("f32", "f16", "rn"):
        halves = lambda x: np.where(np.isnan(x), np.uint16(NAN16), x.astype(np.float16).view(np.uint16))  # noqa: E731
        return Form("b16", ("f32",), halves)
    if (source, how) == ("f16", "") and result == "f32":
        return Form("f32", ("f16",), lambda x: x.astype(np.float32))
    if both == "ff" and source == result == "f32" and how == "rni":
        return Form("f32", ("f32",), np.rint)
    if source == "f32" and how == "rzi" and result[0] in "us":
        return Form(result, ("f32",), lambda x: _saturated(x, to))
    if result == "f32" and how == "rn" and source[0] in "us":
        return Form("f32", (source,), lambda x: x.astype(np.float32))
    if "f" not in both and how == "":
        return Form(result, (source,), lambda x: x.astype(to))
    return None


def fused(x: Array, y: Array, z: Array) -> Array:
    """x*y + z of float32, rounded once: the sum in float64 is rounded to odd, so that the second rounding decides."""
    product, addend = x.astype(np.float64) * y.astype(np.float64), z.astype(np.float64)  # 48 bits: exact
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = np.ascontiguousarray(total).view(np.int64).copy()
    inexact = np.isfinite(error) & (error != 0) & (bits & 1 == 0)
    bits += np.where(inexact, np.where((error > 0) == (total > 0), 1, -1), 0)
    return bits.view(np.float64).astype(np.float32)


def _divided(x: Array, y: Array) -> Array:
    """Whole quotients, towards zero; all bits where ``y`` is zero, as GPUs give them."""
    safe = np.where(y == 0, np.ones_like(y), y)
    quotient = x // safe
    if x.dtype.kind == "i":
        quotient += ((quotient * safe != x) & ((x < 0) != (safe < 0))).astype(x.dtype)
    return np.where(y == 0, np.array(-1).astype(x.dtype), quotient)


def _shifted(x: Array, by: Array, left: bool) -> Array:
    """Amounts of the width and more leave nothing but the sign."""
    bits = 8 * x.dtype.itemsize
    amount = np.minimum(by, bits - 1).astype(x.dtype)
    if left:
        return np.where(by < bits, x << amount, np.zeros_like(x))
    return np.where((by < bits) | (x.dtype.kind == "i"), x >> amount, np.zeros_like(x))


def _saturated(x: Array, to: Any) -> Array:
    """Towards zero, within the type's range; NaN becomes 0."""
    info = np.iinfo(to)
    whole = np.trunc(x.astype(np.float64))
    low, high = whole <= info.min, whole >= float(info.max)  # 2^63 for int64
    inside = np.where(np.isnan(whole) | low | high, 0, whole).astype(to)
    return np.where(high, info.max, np.where(low, info.min, inside)).astype(to)
