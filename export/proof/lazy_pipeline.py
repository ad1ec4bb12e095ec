"""A lazy pipeline opens one engine at a time: proving a model takes no more memory than its largest part."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from edgediff.bundle.manifest import Bundle, Part
from edgediff.pipeline import Pipeline

Arrays = dict[str, NDArray[Any]]
EngineCall = Callable[..., Arrays]
Opener = Callable[[], EngineCall]
LARGE = 256 << 20  # bytes


def collect_garbage(size: int) -> None:
    """Get memory back that is in cycles, where there may be much: ``size`` is the model's, in bytes."""
    if size > LARGE:
        gc.collect()  # takes a quarter of a second with torch loaded


class EngineSlot:
    """Holds the one engine that is open: it opens what is called, and closes what was called before."""

    def __init__(self, size: int) -> None:
        self._open: dict[str, EngineCall] = {}
        self._size = size

    def take(self, name: str, opener: Opener) -> EngineCall:
        """Return the engine of this name, open."""
        if name not in self._open:
            self._open.clear()
            collect_garbage(self._size)
            self._open[name] = opener()
        return self._open[name]


class LazyEngine:
    """An engine that opens when it is called. ``calls`` keeps the inputs and outputs of every call."""

    def __init__(self, name: str, part: Part, opener: Opener, slot: EngineSlot) -> None:
        self.inputs, self.outputs = part.inputs, part.outputs
        self.calls: list[tuple[Arrays, Arrays]] = []
        self._name, self._opener, self._slot = name, opener, slot

    def __call__(self, **inputs: NDArray[Any]) -> Arrays:
        out = self._slot.take(self._name, self._opener)(**inputs)
        self.calls.append((inputs, out))
        return out


def pipeline_of(bundle: Bundle, openers: Mapping[str, Opener], size: int) -> tuple[Pipeline, dict[str, LazyEngine]]:
    """Make a pipeline over a bundle, of ``size`` bytes, with these engines instead of the bundle's own."""
    pipe, slot = Pipeline(bundle), EngineSlot(size)
    engines = {name: LazyEngine(name, bundle.parts[name], opener, slot) for name, opener in openers.items()}
    for name, engine in engines.items():
        pipe.set_engine(name, engine)
    return pipe, engines
