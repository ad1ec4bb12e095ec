"""A run's noise is drawn by the host and copied to the device, or drawn by the kernels from seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32
from ..sampling.planning import Plan
from ..sampling.rng import Generator, TorchCudaGenerator, draw_rounds


@dataclass(frozen=True)
class RunNoise:
    """A run's noise is its first state and what its rows add."""

    first_state: Float32 | None  # (B, C, h, w); None: the kernels draw it
    values: Float32 | None  # (draws, B, C, h, w); None: the kernels draw, or no row adds noise
    seeds: NDArray[np.uint64] | None = None  # one an image, for the kernels
    threads: int = 0  # of torch's random kernel in a draw of one image, for the kernels
    earlier_draws: int = 0  # of each seed, before this run
    rounds: int = 1  # counters that each of the threads moves on by in a draw

    @property
    def first_draw(self) -> int:
        """The number of the rows' first draw, as the kernels count each seed's."""
        return self.earlier_draws + (self.first_state is None)


def draw_noise(
    plan: Plan, table: NDArray[Any], streams: Sequence[Generator], shape: tuple[int, ...], x: Float32 | None
) -> RunNoise:
    """The noise of a run, and ``streams`` moved on past it.

    Args:
        plan, table: the rows, and the same as the kernels read them.
        streams: one generator an image. The kernels draw where all are torch-cuda's, at one place.
        shape: of the state, (B, C, h, w).
        x: the first state; drawn before the rows' noise when None.
    """
    size = math.prod(shape[1:])
    cuda = [s for s in streams if isinstance(s, TorchCudaGenerator)]
    threads, earlier_draws = _common_place(cuda, size)
    if len(cuda) == len(streams) and earlier_draws is not None:
        for generator in cuda:
            generator.skip(size, int(np.count_nonzero(table["d"])) + (x is None))
        seeds = np.array([g.seed for g in cuda], np.uint64)
        return RunNoise(x, None, seeds, threads, earlier_draws, draw_rounds(size, threads))

    def draw() -> Float32:
        return np.concatenate([s.randn((1, *shape[1:])) for s in streams])

    first = draw() if x is None else x
    return RunNoise(first, np.stack([draw() for row in plan.rows if row.d]) if plan.stochastic else None)


def _common_place(generators: Sequence[TorchCudaGenerator], size: int) -> tuple[int, int | None]:
    """The place of generators in draws of ``size``, as ``TorchCudaGenerator.place``; no draws where they differ."""
    places = {g.place(size) for g in generators}
    return places.pop() if len(places) == 1 else (0, None)
