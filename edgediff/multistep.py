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
    """Factors of the x0 estimates in UniP (``end`` None: now, before, ...) or UniC (at the end, now, before, ...)."""
    decay = math.expm1(-h) if math.isfinite(h) else -1.0
    points = [*nodes, *([] if end is None else [end])]
    if len(points) == 1:
        rhos = [0.5]  # the paper's simplification
    elif points:
        b, phi, factorial = [], (decay / -h if math.isfinite(h) else 0.0) - 1, 1
        for i in range(1, len(points) + 1):
            b.append(phi * factorial / decay)
            factorial *= i + 1
            phi = (phi / -h if math.isfinite(h) else 0.0) - 1 / factorial
        rhos = [float(v) for v in np.linalg.solve(np.vander(points, increasing=True).T, b)]
    else:
        rhos = []
    shares = [-alpha * decay * rho / point for rho, point in zip(rhos, points, strict=True)]
    now = -alpha * decay - sum(shares)
    return [now, *shares] if end is None else [shares[-1], now, *shares[:-1]]
