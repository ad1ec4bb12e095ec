"""Weights of multistep methods: integrals of interpolating polynomials, in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def lagrange_integrals(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """The integral from ``start`` to ``end`` of each node's Lagrange polynomial."""
    from numpy.polynomial import Polynomial  # takes as long to load as the rest of edgediff

    # In units of the first node: rho spans three decades.
    unit, out = nodes[0], []
    scaled = [n / unit for n in nodes]
    for k, node in enumerate(scaled):
        others = [n for j, n in enumerate(scaled) if j != k]
        whole = Polynomial.fromroots(others).integ() if others else Polynomial([0.0, 1.0])
        out.append(float(unit * (whole(end / unit) - whole(start / unit)) / math.prod(node - n for n in others)))
    return out


def log_integrals(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """The integral over rho from ``start`` to ``end`` of each node's Lagrange polynomial in log rho."""
    from numpy.polynomial import Polynomial

    out = []
    for k, node in enumerate(nodes):
        others = [n - node for j, n in enumerate(nodes) if j != k]
        polynomial = Polynomial.fromroots(others) if others else Polynomial([1.0])
        # With s = log rho, p(s) exp(s) has the antiderivative (p - p' + p'' - ...) exp(s).
        inside, sign, derivative = polynomial, 1.0, polynomial
        for _ in others:
            derivative, sign = derivative.deriv(), -sign
            inside = inside + sign * derivative
        whole = end * inside(math.log(end) - node) - start * inside(math.log(start) - node)
        out.append(float(whole / math.prod(-n for n in others)))
    return out


def bh_factors(h: float, nodes: Sequence[float], alpha: float, end: float | None) -> list[float]:
    """Factors of the x0 estimates in UniP (``end`` None: now, before, ...) or UniC (at the end, now, before, ...).

    ``nodes`` are the places of earlier estimates in units of h, 0 now; ``end`` is 1. An estimate made at pure noise
    lies at -inf and has no share, h is inf on the way to the clean level.
    """
    decay, phi = (math.expm1(-h), math.expm1(-h) / -h - 1) if math.isfinite(h) else (-1.0, -1.0)
    points = [*nodes, *([] if end is None else [end])]
    finite = [point for point in points if math.isfinite(point)]
    b, factorial = [], 1
    for i in range(1, len(finite) + 1):
        b.append(phi * factorial / decay)
        factorial *= i + 1
        phi = (phi / -h if math.isfinite(h) else 0.0) - 1 / factorial
    if len(points) == 1:
        b = [0.5] * len(finite)  # the paper's simplification
    rhos = iter(np.linalg.solve(np.vander(finite, increasing=True).T, b) if finite else ())
    shares = [-alpha * decay * float(next(rhos)) / point if math.isfinite(point) else 0.0 for point in points]
    now = -alpha * decay - sum(shares)
    return [now, *shares] if end is None else [shares[-1], now, *shares[:-1]]
