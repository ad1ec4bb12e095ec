"""Which engine runs each part: chosen by what is installed, built and fits the shapes; opened on first use."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ..bundle.manifest import Bundle
from ..device.base import Device
from ..errors import ArgumentError, EngineError, choices
from .base import Engine, Provider
from .onnxruntime import open_part
from .tensorrt.cache import NO_PLAN, BuiltEngine, DamagedEngineFile, EngineCache, EngineSource, default_folder, source
from .tensorrt.installed import this_platform
from .tensorrt.profiles import Shape

if TYPE_CHECKING:
    from .tensorrt.engine import Scratch, TensorRTEngine

ENGINES = ("onnx", "tensorrt", "auto")


def check_engine(engine: str | None, device: int | None) -> None:
    """Raises ``ArgumentError`` for an unknown engine, or one that ``device`` cannot have."""
    if engine is not None and engine not in ENGINES:
        raise ArgumentError(f"no engine {engine!r}; choose from {choices(ENGINES)}")
    if engine in ("tensorrt", "auto") and device is None:
        raise ArgumentError(f"engine {engine!r} needs device='cuda'; the CPU's is 'onnx'")


@dataclass(frozen=True)
class EngineOptions:
    """How a pipeline wants its parts run; see ``edgediff.load``."""

    threads: int | None = None
    providers: Sequence[Provider] | None = None
    engine: str | None = None
    cache: EngineCache = field(default_factory=lambda: EngineCache(default_folder()))


@dataclass
class Parts:
    """The engines of a bundle. Requests hold the one they began with; a change makes another.

    Args:
        bundle: whose.
        wish: how.
        device: a CUDA device; None is the CPU.
    """

    bundle: Bundle
    wish: EngineOptions = field(default_factory=EngineOptions)
    device: Device | None = None
    given: Mapping[str, Engine] = field(default_factory=dict)  # in place of what would be chosen
    planned: dict[str, TensorRTEngine | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)  # why a part has no plan
    _onnx: dict[str, Engine] = field(default_factory=dict)
    _scratch: list[Scratch] = field(default_factory=list)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def pick(self, part: str, shapes: Mapping[str, Shape] | None = None) -> Engine:
        """The part's engine for inputs of these shapes.

        Raises:
            EngineError: none can run here; the message holds the reason for each.
        """
        with self._lock:
            if part in self.given:
                return self.given[part]
            plan = self._plan(part)
            reason = self.reasons.get(part, "")
            if plan is not None:
                reason = "" if shapes is None else plan.refuses(shapes)
                if not reason:
                    return plan
            if self.wish.engine == "tensorrt":
                raise EngineError(f"{part} cannot run by TensorRT: {reason}")
            if part not in self._onnx:
                self._onnx[part] = self._open(part, reason)
            return self._onnx[part]

    def run(self, part: str, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Call the part's engine for these inputs. Raises as ``pick``, and what the engine raises."""
        return self.pick(part, {name: values.shape for name, values in inputs.items()})(**inputs)

    def outside(self, part: str, shapes: Mapping[str, Shape]) -> str:
        """Why the part's plan does not take inputs of these shapes; an empty string where it does, or there is none."""
        with self._lock:
            plan = None if part in self.given else self._plan(part)
            return "" if plan is None else plan.refuses(shapes)

    def _open(self, part: str, reason: str) -> Engine:
        try:
            return open_part(self.bundle, part, self.wish.threads, self.device, self.wish.providers)
        except EngineError as error:
            if reason:
                raise EngineError(f"{error}; nor by TensorRT: {reason}") from error
            raise

    def with_engine(self, part: str, engine: Engine) -> Parts:
        """The same, but for one part, which ``engine`` runs whatever the shapes."""
        with self._lock:
            return replace(self, given={**self.given, part: engine})

    def with_plan(self, part: str, opened: TensorRTEngine) -> Parts:
        """The same, but for one part, which runs by this plan."""
        with self._lock:
            onnx = {name: engine for name, engine in self._onnx.items() if name != part}  # give its memory back
            return replace(self, planned={**self.planned, part: opened}, _onnx=onnx)

    def open_plan(self, part: str, plan: BuiltEngine) -> TensorRTEngine:
        """Open a plan. Raises ``EngineError``; a plan that is damaged leaves the cache."""
        from .tensorrt.engine import Scratch, TensorRTEngine

        assert self.device is not None
        with self._lock:
            if not self._scratch:
                self._scratch.append(Scratch(self.device))
        graph = source(self.bundle, part).path if plan.stripped else None
        try:
            return TensorRTEngine(part, self.bundle.parts[part], plan, self.device, self._scratch[0], graph)
        except DamagedEngineFile:
            self.wish.cache.drop(plan)
            raise

    def find(self, part: str) -> tuple[EngineSource, list[BuiltEngine], list[str]]:
        """What the part's plan is built from, the plans that may run here, and why others may not.

        Raises ``EngineError`` where there can be none.
        """
        assert self.device is not None
        runs = this_platform(self.device.ordinal)
        made_of = source(self.bundle, part)
        return made_of, *self.wish.cache.find(made_of, part, runs)

    def _plan(self, part: str) -> TensorRTEngine | None:
        """The engine of the newest plan that opens."""
        if part not in self.planned:
            self.planned[part] = None
            if self.device is not None and self.wish.engine != "onnx" and self.wish.providers is None:
                self.planned[part] = self._found(part)
        return self.planned[part]

    def _found(self, part: str) -> TensorRTEngine | None:
        try:
            _, plans, reasons = self.find(part)
        except EngineError as error:
            self.reasons[part] = str(error).removeprefix(f"{part}: ")
            return None
        for plan in plans:
            try:
                return self.open_plan(part, plan)
            except EngineError as error:
                reasons.append(str(error).removeprefix(f"{part}: "))
        self.reasons[part] = "; ".join(reasons) or NO_PLAN
        return None
