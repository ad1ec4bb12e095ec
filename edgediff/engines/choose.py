"""The choice tells which backend runs each part, and why not the others. Engines are opened on first use."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import Any

from numpy.typing import NDArray

from ..bundle.manifest import Bundle
from ..checks import one_of
from ..device.base import Device
from ..errors import ArgumentError, EngineError, choices
from .base import Backend, Engine, EngineOptions, Shapes, refuses
from .memory import Demand, Resident, activations
from .memory_guard import check_memory
from .passing import PassingEngine
from .providers import CPU, name_of
from .tensors import forms, run_part

BACKENDS = ("tensorrt", "onnxruntime")  # modules of this folder, in the order in which they are tried
AUTO = "auto"  # every backend, and what TensorRT lacks is built meanwhile
PROVIDERS = "onnx"  # the backend that execution providers belong to
WORKED = {"unet": "sample", "vae_decoder": "latent_sample"}  # inputs whose shapes say what memory a call works in


def backends() -> tuple[Backend, ...]:
    """Return every backend, in the order in which they are tried."""
    return tuple(import_module(f"{__package__}.{name}").BACKEND for name in BACKENDS)


def engine_words() -> tuple[str, ...]:
    """Return the engines that ``load(engine=...)`` takes."""
    return (*sorted(backend.word for backend in backends()), AUTO)


def walk(options: EngineOptions, ordinal: int | None) -> Iterator[Backend]:
    """Return the backends that are tried on a device with these options, in their order.

    Args:
        ordinal: the number of a CUDA device; None is the CPU.
    """
    chosen = PROVIDERS if options.providers is not None else options.engine
    for backend in backends() if options.only is None else (options.only,):
        if _kind(ordinal) in backend.devices and chosen in (None, AUTO, backend.word):
            yield backend


def _kind(ordinal: int | None) -> str:
    return "cpu" if ordinal is None else "cuda"


def check_engine(engine: str | None, ordinal: int | None) -> None:
    """Refuse an unknown engine, or one that the device cannot have, by ``ArgumentError``."""
    if engine is None:
        return
    one_of("engine", engine, engine_words())
    devices = next((backend.devices for backend in backends() if backend.word == engine), ("cuda",))
    if _kind(ordinal) not in devices:
        others = sorted(backend.word for backend in walk(EngineOptions(), ordinal))
        where = "the CPU's" if ordinal is None else "a GPU's"
        verb = f"is {others[0]!r}" if len(others) == 1 else f"are {choices(map(repr, others))}"
        raise ArgumentError(f"engine {engine!r} needs device={devices[0]!r}; {where} {verb}")


@dataclass(frozen=True)
class Availability:
    """Availability tells whether one backend can run one part on one device, and why not."""

    device: str
    engine: str
    detail: str  # what would run
    reasons: tuple[str, ...]  # why it would not


def survey(bundle: Bundle, part: str, options: EngineOptions, ordinal: int = 0) -> list[Availability]:
    """Tell what the choice would find for a part, first on this CUDA device, then on the CPU. Opens nothing."""
    availabilities = []
    for place in (ordinal, None):
        for backend in walk(options, place):
            reasons = backend.why_not(bundle, part, options, place)
            detail = "" if reasons else backend.describe(bundle, part, options, place)
            availabilities.append(Availability(_kind(place), backend.name, detail, reasons))
    return availabilities


def check_foreign(bundle: Bundle, options: EngineOptions, ordinal: int | None) -> None:
    """Refuse another exporter's graphs whose operators nothing runs on a device, by ``EngineError``. Opens nothing."""
    for part in () if bundle.foreign is None else bundle.needed:
        if bundle.foreign is None or not bundle.foreign.parts[part].header.custom:
            continue
        reasons = [backend.why_not(bundle, part, options, ordinal) for backend in walk(options, ordinal)]
        if reasons and all(reasons):
            raise EngineError(f"{part} cannot run here: {'; '.join(reason for some in reasons for reason in some)}")


@dataclass
class Parts:
    """Parts hold the engines of a bundle. Requests hold the parts they began with; a change makes others.

    Args:
        bundle: whose.
        options: how they are wanted.
        device: a CUDA device; None is the CPU.
        replaced: engines in place of those that would be chosen, by part.
    """

    bundle: Bundle
    options: EngineOptions = field(default_factory=EngineOptions)
    device: Device | None = None
    replaced: Mapping[str, Engine] = field(default_factory=dict)
    _opened: dict[tuple[str, str], Engine] = field(default_factory=dict)  # by part and the backend's word
    _failed: dict[tuple[str, str], str] = field(default_factory=dict)  # why those before that one did not open
    _held: dict[str, int] = field(default_factory=dict)  # bytes that engines work in and keep, by part
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def allow(self, demand: Demand) -> None:
        """Refuse a call that cannot fit in memory; raises as ``check_memory``."""
        hosted = self.device is None and all(name_of(p) == CPU for p in self.options.providers or ())
        with self._lock:
            resident = Resident(
                [part for part in self.bundle.needed if part not in self.replaced] if hosted else (),
                {part for part, _ in self._opened},
                dict(self._held),
                self.options.release_parts,
                self.device is not None,
            )
        check_memory(self.bundle, demand, resident, self.options.memory_limit)

    def pick(self, part: str, shapes: Shapes | None = None) -> Engine:
        """Return the part's engine for inputs of these shapes: of the first backend that can.

        Raises:
            EngineError: none can run here; the message holds the reason for each. Or the device is closed.
        """
        if part in self.replaced:
            return self.replaced[part]
        if self.device is not None:
            self.device.use()  # sessions hold its stream, which is gone when it is closed
        if self.options.release_parts:
            described = self.bundle.parts[part]
            return PassingEngine(described.inputs, described.outputs, partial(self._pick, part))
        engine = self._pick(part, shapes)
        worked = () if shapes is None else shapes.get(WORKED.get(part, ""), ())
        if len(worked) == 4:
            batch, _, *cells = worked
            self._held[part] = max(self._held.get(part, 0), activations(self.bundle, part, batch, *cells))
        return engine

    def _pick(self, part: str, shapes: Shapes | None) -> Engine:
        with self._lock:
            if self.options.release_parts:
                for key in [key for key in self._opened if key[0] != part]:
                    del self._opened[key]  # a call that runs keeps its engine to its end
            errors: dict[str, EngineError] = {}  # by the backend's name
            try:
                return self._first(part, shapes, errors)
            finally:
                errors.clear()  # an error holds this frame, and with it whatever its callers hold

    def _first(self, part: str, shapes: Shapes | None, errors: dict[str, EngineError]) -> Engine:
        failed: dict[tuple[str, str], str] = {}
        for backend in self._walk():
            try:
                engine = self._open(part, backend)
            except EngineError as error:
                errors[backend.name] = error
                failed[part, backend.word] = str(error)
                continue
            if reason := refuses(engine, shapes):
                errors[backend.name] = EngineError(f"{part} cannot run by {backend.name}: {reason}")
                continue
            self._failed.update(failed)  # calls need not wait for them again
            return engine
        raise _joined(part, errors)

    def run(self, part: str, **inputs: NDArray[Any]) -> Mapping[str, NDArray[Any]]:
        """Call the part's engine for these inputs. Raises as ``pick`` and ``run_part``, and what the engine raises."""
        shapes = {name: values.shape for name, values in inputs.items()}
        return run_part(part, self.pick(part, shapes), inputs, forms(self.bundle, part, shapes))

    def outside(self, part: str, shapes: Shapes) -> str:
        """Tell why the part's first engine does not take inputs of these shapes; an empty string where it does, or
        where there is none.
        """
        with self._lock:
            for backend in () if part in self.replaced else self._walk():
                try:
                    return refuses(self._open(part, backend), shapes)
                except EngineError:
                    continue
        return ""

    def open_by(self, word: str, part: str) -> Engine:
        """Return a part's engine of one backend, opened anew while calls go on. Raises as ``Backend.open``."""
        backend = next(backend for backend in backends() if backend.word == word)
        return backend.open(self.bundle, part, self.options, self.device)

    def with_engine(self, part: str, engine: Engine) -> Parts:
        """Return the same, but for one part, which ``engine`` runs whatever the shapes."""
        with self._lock:
            return replace(self, replaced={**self.replaced, part: engine})

    def with_opened(self, word: str, part: str, engine: Engine) -> Parts:
        """Return the same, but for one part, for which this backend has opened ``engine``; others are asked again."""
        with self._lock:
            opened = {key: other for key, other in self._opened.items() if key[0] != part}  # give their memory back
            failed = {key: error for key, error in self._failed.items() if key[0] != part}
            held = {other: size for other, size in self._held.items() if other != part}
            return replace(self, _opened={**opened, (part, word): engine}, _failed=failed, _held=held)

    def _walk(self) -> Iterator[Backend]:
        return walk(self.options, None if self.device is None else self.device.ordinal)

    def _open(self, part: str, backend: Backend) -> Engine:
        key = part, backend.word
        if key in self._failed:
            raise EngineError(self._failed[key])
        if key not in self._opened:
            self._opened[key] = backend.open(self.bundle, part, self.options, self.device)
        return self._opened[key]


def _joined(part: str, errors: Mapping[str, EngineError]) -> EngineError:
    """Return the last backend's error, with the reasons of those before it."""
    if not errors:
        return EngineError(f"{part} cannot run here: no backend takes this device with these options")
    *others, last = errors
    reasons = [f"; nor by {name}: {_reason(part, name, errors[name])}" for name in others]
    if not reasons:
        return errors[last]
    joined = EngineError(f"{errors[last]}{''.join(reasons)}")
    joined.__cause__ = errors[last]
    return joined


def _reason(part: str, name: str, error: EngineError) -> str:
    return str(error).removeprefix(f"{part} cannot run by {name}: ").removeprefix(f"{part}: ")
