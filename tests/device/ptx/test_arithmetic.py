"""The interpreter's instructions, against whole numbers of any size and exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from .arithmetic import dtype_of, form, fused
from .parsing import PtxError

CORNERS = [0, 1, 2, 3, 7, 31, 32, 33, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]


def pairs(kind: str) -> tuple[list[int], list[int], np.ndarray, np.ndarray]:
    """Every pair of corners of a type: as Python's numbers, and as arrays."""
    dtype = dtype_of(kind)
    values = np.unique(np.array(CORNERS, np.uint64).astype(f"u{dtype.itemsize}").view(dtype))
    x, y = (v.reshape(-1) for v in np.meshgrid(values, values))
    return x.tolist(), y.tolist(), x, y


def wrapped(values: list[int], kind: str) -> np.ndarray:
    size = dtype_of(kind).itemsize
    return np.array([v % 2 ** (8 * size) for v in values], f"u{size}").view(dtype_of(kind))


def quotient(x: int, y: int) -> int:
    return -1 if y == 0 else int(Fraction(x, y))  # towards zero


WHOLE = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul.lo": lambda x, y: x * y,
    "div": quotient,
    "rem": lambda x, y: x - quotient(x, y) * y,
    "min": min,
    "max": max,
    "xor": lambda x, y: x ^ y,
}


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers(name: str, kind: str) -> None:
    xs, ys, x, y = pairs(kind)
    with np.errstate(all="ignore"):
        made = form(f"{name}.{kind}").compute(x, y)
    expected = wrapped([WHOLE[name](p, q) for p, q in zip(xs, ys, strict=True)], kind)
    np.testing.assert_array_equal(made, expected)
    assert made.dtype == dtype_of(kind)


@pytest.mark.parametrize("kind", ["u32", "s32"])
def test_wide_products(kind: str) -> None:
    xs, ys, x, y = pairs(kind)
    wide = kind[0] + "64"
    products = [p * q for p, q in zip(xs, ys, strict=True)]
    np.testing.assert_array_equal(form(f"mul.wide.{kind}").compute(x, y), wrapped(products, wide))
    np.testing.assert_array_equal(form(f"mul.hi.{kind}").compute(x, y), wrapped([p >> 32 for p in products], kind))


@pytest.mark.parametrize("kind", ["b32", "b64"])
def test_shifts(kind: str) -> None:
    """An amount of the width or more leaves nothing, or the sign."""
    bits = 8 * dtype_of(kind).itemsize
    xs, _, x, _ = pairs(kind)
    for amount in (0, 1, 31, 32, 63, 64, 1000):
        by = np.full(len(xs), amount, np.uint32)
        np.testing.assert_array_equal(form(f"shl.{kind}").compute(x, by), wrapped([v << amount for v in xs], kind))
        np.testing.assert_array_equal(
            form(f"shr.u{bits}").compute(x.view(f"u{bits // 8}"), by), wrapped([v >> amount for v in xs], kind)
        )
        signed = x.view(f"i{bits // 8}")
        np.testing.assert_array_equal(
            form(f"shr.s{bits}").compute(signed, by), wrapped([v >> amount for v in signed.tolist()], f"s{bits}")
        )


def test_fused_products_are_rounded_once() -> None:
    rng = np.random.default_rng(0)
    x, y, z = (rng.integers(0, 2**32, 20_000, dtype=np.uint32).view(np.float32) for _ in range(3))
    x[:5000], y[:5000] = (rng.standard_normal(5000).astype(np.float32) for _ in range(2))
    z[:5000] = -(x[:5000] * y[:5000])  # what is left is the product's own rounding
    with np.errstate(invalid="ignore"):
        z[5000:9000] = np.float32(2**-20) * x[5000:9000]
    ok = np.isfinite(x) & np.isfinite(y) & np.isfinite(z)
    with np.errstate(all="ignore"):
        made = fused(x[ok], y[ok], z[ok])
    for a, b, c, got in zip(x[ok].tolist(), y[ok].tolist(), z[ok].tolist(), made.tolist(), strict=True):
        exact = Fraction(a) * Fraction(b) + Fraction(c)
        if abs(exact) >= Fraction(2) ** 128 - Fraction(2) ** 103:
            assert np.isinf(got)
            continue
        low, high = (float(np.nextafter(np.float32(got), np.float32(d))) for d in (-np.inf, np.inf))
        error = abs(Fraction(got) - exact)
        assert all(error <= abs(Fraction(other) - exact) for other in (low, high) if np.isfinite(other))
    assert np.isnan(fused(np.float32([np.nan]), np.float32([1]), np.float32([1])))[0]


@pytest.mark.parametrize(("of", "of_nan"), [("eq", False), ("ne", False), ("neu", True), ("ltu", True), ("lt", False)])
def test_comparisons_with_nan(of: str, of_nan: bool) -> None:
    compare = form(f"setp.{of}.f32").compute
    assert compare(np.float32([np.nan]), np.float32([1])).tolist() == [of_nan]
    assert compare(np.float32([1]), np.float32([2])).tolist() == [of in ("ne", "neu", "ltu", "lt")]


def test_conversions_saturate() -> None:
    values = np.float32([-1.5, 1.9, 3e9, 1e20, -1e20, np.inf, np.nan])
    with np.errstate(all="ignore"):
        assert form("cvt.rzi.u32.f32").compute(values).tolist() == [0, 1, 3 * 10**9, 2**32 - 1, 0, 2**32 - 1, 0]
        whole = form("cvt.rzi.s64.f32").compute(values).tolist()
        halves = form("cvt.rn.f16.f32").compute(np.float32([65519.9, 65520, 2**-25, 3 * 2**-25, np.nan])).tolist()
    assert whole == [-1, 1, 3 * 10**9, 2**63 - 1, -(2**63), 2**63 - 1, 0]
    assert halves == [0x7BFF, 0x7C00, 0x0000, 0x0002, 0x7FFF]


@pytest.mark.parametrize("opcode", ["add.f32", "mul.f32", "fma.rz.f32", "sin.f32", "add.sat.s32", "cvt.rn.f16.f64"])
def test_what_is_not_known_is_refused(opcode: str) -> None:
    with pytest.raises(PtxError, match="is known here"):
        form(opcode)
