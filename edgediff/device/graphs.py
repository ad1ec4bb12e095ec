"""Step graphs: what a loop enqueues a step, {U-Net, update}, captured once for each key and launched from then on.

Nothing here changes a value. A step that cannot be captured is enqueued call by call, and said once by a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import EngineError, EngineWarning, warn_caller
from .array import DeviceArray
from .base import Device
from .graph_nodes import HostWorkError, refuse_host_work
from .model import Model

if TYPE_CHECKING:
    from .fused_update import FusedUpdate

Tensors = tuple[DeviceArray, DeviceArray, DeviceArray]  # a model's sample, timestep and output

State = Literal["warming", "checking", "captured", "eager"]

MAX_KEYS = 32  # sets of shapes and addresses; of more, the oldest begin anew
TRIES = 2  # captures that may fail: another thread can spoil one
TOLERANCE = 1e-3  # max|graph - call| / max|call|, in which a graph's output must equal the call's
CHANGE = 1e-2  # the same between two calls, from which a graph that repeats the first would be noticed


@dataclass
class _Key:
    """What is known of a key that has no graph yet."""

    calls: int = 0
    failures: int = 0
    eager: bool = False  # for good
    proven: bool = False
    graph: Any = None  # of the U-Net alone, which is being checked
    first: NDArray[Any] | None = None  # the output of the call that it was captured at


class StepGraphs:
    """Step graphs enqueue a loop's steps, by a captured graph where there is one.

    Args:
        device: where; its lock is held by who calls ``step``.
        model: the U-Net.
        tensors: its own, by whether guidance is on.
        update: the row that follows.
    """

    def __init__(self, device: Device, model: Model, tensors: Mapping[bool, Tensors], update: FusedUpdate) -> None:
        self._device, self._model, self._tensors, self._update = device, model, tensors, update
        self._graphs: dict[Hashable, Any] = {}
        self._others: dict[Hashable, _Key] = {}
        self._said = False

    def step(self, guided: bool) -> None:
        """Enqueue one U-Net call and its row.

        Raises:
            EngineError: the call fails outside of a graph, too.

        Warns:
            EngineWarning: the loop goes on without graphs; once.
        """
        key = guided, self._model.key
        graph = self._graphs.get(key)
        if graph is None:
            self._without(key, guided)
        else:
            self._device.launch(graph)

    @property
    def states(self) -> dict[Hashable, State]:
        """What became of each key, (guided, the model's)."""
        states: dict[Hashable, State] = dict.fromkeys(self._graphs, "captured")
        for key, known in self._others.items():
            proving = self._model.capture == "proven" and known.calls >= self._model.warm_runs
            states[key] = "eager" if known.eager else "checking" if proving else "warming"
        return states

    def clear(self) -> None:
        """Forget every graph."""
        self._graphs.clear()
        self._others.clear()

    def _without(self, key: Hashable, guided: bool) -> None:
        if self._model.capture == "never":
            self._eager(guided)
            return
        known = self._others.setdefault(key, _Key())
        _bound(self._others)
        if known.calls < self._model.warm_runs:  # engines lay out memory first, which graphs cannot
            self._eager(guided)
            known.calls += 1
        elif known.eager:
            self._eager(guided)
        elif self._model.capture == "proven" and not known.proven:
            self._unet(guided)
            self._prove(known, guided)
            self._update.step()
        elif not self._launched(key, known, guided):
            self._eager(guided)

    def _eager(self, guided: bool) -> None:
        self._unet(guided)
        self._update.step()

    def _unet(self, guided: bool) -> None:
        self._model.enqueue(*self._tensors[guided], self._device.stream)

    def _launched(self, key: Hashable, known: _Key, guided: bool) -> bool:
        """Capture a step and launch it; False where that failed."""
        try:
            graph = self._capture(lambda: self._eager(guided))
            if key != (guided, self._model.key):
                return False  # what the graph holds has moved meanwhile
            self._device.launch(graph)
        except EngineError as error:
            self._fail(known, error)
            return False
        self._graphs[key] = graph
        del self._others[key]
        _bound(self._graphs)
        return True

    def _capture(self, work: Callable[[], None]) -> Any:
        def checked() -> None:
            work()
            if self._model.capture == "proven":
                refuse_host_work(self._device)

        return self._device.capture(checked)

    def _prove(self, known: _Key, guided: bool) -> None:
        """Launch a graph of the U-Net after the same call, and compare; once with the input that it was captured at,
        once with another. The output is the call's in any case. Waits for the device.
        """
        *_, output = self._tensors[guided]
        called = self._fetched(output)
        if not np.isfinite(called).all():
            return  # the update says so
        if known.first is not None and difference(called, known.first) < CHANGE:
            return  # a graph that gives the first output would pass
        try:
            graph = self._capture(lambda: self._unet(guided)) if known.first is None else known.graph
            self._device.upload(output.address, np.full_like(called, np.nan))  # so that it must be written
            self._device.launch(graph)
            error = difference(self._fetched(output), called)
        except EngineError as failure:
            self._fail(known, failure)
        else:
            if not error <= TOLERANCE:
                self._give_up(known, f"its graph gave other values than the call itself (relative error {error:.2g})")
            elif known.first is None:
                known.graph, known.first = graph, called
            else:
                known.proven, known.graph, known.first = True, None, None
        self._device.upload(output.address, called)

    def _fetched(self, array: DeviceArray) -> NDArray[Any]:
        values = np.empty(array.shape, array.dtype)
        self._device.download(array.address, values)
        return values

    def _fail(self, known: _Key, error: EngineError) -> None:
        known.failures += 1
        known.graph = known.first = None  # the check begins anew
        if known.failures >= TRIES or isinstance(error, HostWorkError):
            self._give_up(known, str(error))

    def _give_up(self, known: _Key, reason: str) -> None:
        known.eager, known.graph, known.first = True, None, None
        if not self._said:
            self._said = True
            warn_caller(f"unet runs without CUDA graphs: {reason}; values are right, and steps slower", EngineWarning)


def difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """max|found - expected| / max|expected|; infinite where a value is not finite."""
    wanted = expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        error = float(np.abs(found - wanted).max())
    return error / max(float(np.abs(wanted).max()), 1e-30) if np.isfinite(error) else float("inf")


def _bound(kept: dict[Hashable, Any]) -> None:
    while len(kept) > MAX_KEYS:
        del kept[next(iter(kept))]
