"""DPMSolverSDEScheduler draws its noise from a tree of its own; here it draws from the pipeline's generator."""

from __future__ import annotations

import importlib
import math
from types import TracebackType
from typing import Any

import torch


class BrownianNoise:
    """Noise along one Brownian path in sigma, by independent draws of ``generator``, while the context lasts.

    Two intervals that begin at one sigma share their first part, as on diffusers' path. Other schedulers are left as
    they are.
    """

    def __init__(self, scheduler: Any, generator: torch.Generator) -> None:
        self._module = importlib.import_module(type(scheduler).__module__)
        self._plain = getattr(self._module, "BrownianTreeNoiseSampler", None)
        self._generator = generator
        self._shape: tuple[int, ...] = ()
        self._start, self._end, self._noise = math.nan, math.nan, torch.zeros(())

    def __enter__(self) -> BrownianNoise:
        if self._plain is not None:
            self._module.BrownianTreeNoiseSampler = self._begin  # type: ignore[attr-defined]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._plain is not None:
            self._module.BrownianTreeNoiseSampler = self._plain  # type: ignore[attr-defined]

    def _begin(self, sample: torch.Tensor, *_: Any) -> BrownianNoise:
        self._shape = tuple(sample.shape)
        return self

    def __call__(self, start: Any, end: Any) -> torch.Tensor:
        start, end = float(start), float(end)
        fresh = torch.randn(self._shape, generator=self._generator)
        if start == self._start:
            shared = (start - self._end) / (start - end)
            fresh = math.sqrt(shared) * self._noise + math.sqrt(1 - shared) * fresh
        self._start, self._end, self._noise = start, end, fresh
        return fresh
