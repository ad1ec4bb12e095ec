"""Engines that are opened for their calls and not held between: the next part takes their memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ..bundle.manifest import Tensor
from .base import Engine, Shapes


@dataclass
class PassingEngine:
    """A part's engine, as ``take`` gives it for inputs of these shapes when it is called."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    take: Callable[[Shapes], Engine]

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return self.take({name: values.shape for name, values in inputs.items()})(**inputs)
