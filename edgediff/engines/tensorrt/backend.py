"""TensorRT as a backend opens the newest engine file of a part that may run on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from ...bundle.manifest import PLAIN, Bundle
from ...device.base import Device
from ...device.cuda import why_no_device
from ...errors import EdgediffError, EngineError
from ..base import Backend, Engine, EngineOptions
from .scratch import Scratch

if TYPE_CHECKING:
    from .engine_file import BuiltEngine

_scratch: WeakKeyDictionary[Device, Scratch] = WeakKeyDictionary()  # one for all engines of a device


class TensorRT:
    """TensorRT opens engine files that were built before, by ``edgediff build`` or in the background."""

    name, word = "TensorRT", "tensorrt"
    devices: tuple[str, ...] = ("cuda",)
    runs: tuple[str, ...] = (PLAIN, "onnx")  # what engine files are built from

    def why_not(self, bundle: Bundle, part: str, options: EngineOptions, ordinal: int | None) -> tuple[str, ...]:
        from .cache import NO_ENGINE_FILE
        from .installed import INSTALL, installed, why_no_tensorrt
        from .source import source_of

        assert ordinal is not None
        reasons = [why_no_tensorrt(ordinal), "" if installed() else INSTALL]
        try:
            source_of(bundle, part)
        except EdgediffError as error:
            reasons.append(str(error).removeprefix(f"{part}: "))
        if not any(reasons) and not any(reasons := [why_no_device(ordinal)]):
            try:
                files, passed_over = engine_files(bundle, part, options, ordinal)
                reasons = [] if files else passed_over or [NO_ENGINE_FILE]
            except EngineError as error:
                reasons = [str(error)]
        return tuple(dict.fromkeys(filter(None, reasons)))

    def describe(self, bundle: Bundle, part: str, options: EngineOptions, ordinal: int | None) -> str:
        from .installed import this_platform

        assert ordinal is not None
        newest = engine_files(bundle, part, options, ordinal)[0][0]
        return f"{'.'.join(map(str, this_platform(ordinal).tensorrt))}, {newest.path}"

    def open(self, bundle: Bundle, part: str, options: EngineOptions, device: Device | None) -> Engine:
        from .cache import NO_ENGINE_FILE, EngineCache
        from .engine_file import DamagedEngineFile

        assert device is not None
        try:
            files, reasons = engine_files(bundle, part, options, device.ordinal)
        except EngineError as error:
            raise EngineError(f"{part} cannot run by TensorRT: {_without(part, error)}") from error
        for built in files:
            try:
                return _open_file(bundle, part, built, options, device)
            except EngineError as error:
                reasons.append(_without(part, error))
                if isinstance(error, DamagedEngineFile):
                    EngineCache(options.cache_folder()).drop(built)
        raise EngineError(f"{part} cannot run by TensorRT: {'; '.join(reasons) or NO_ENGINE_FILE}")


BACKEND: Backend = TensorRT()


def engine_files(
    bundle: Bundle, part: str, options: EngineOptions, ordinal: int
) -> tuple[list[BuiltEngine], list[str]]:
    """Return the engine files of a part that may run on a GPU, the newest first, and why others may not.

    Raises:
        EngineError: there can be none here.
        BundleError: a file that they are built from is missing or damaged.
    """
    from .cache import EngineCache
    from .installed import this_platform
    from .source import source_of

    platform = this_platform(ordinal)
    return EngineCache(options.cache_folder()).find(source_of(bundle, part), part, platform)


def _open_file(bundle: Bundle, part: str, built: BuiltEngine, options: EngineOptions, device: Device) -> Engine:
    from .engine import TensorRTEngine
    from .source import source_of

    graph = source_of(bundle, part).path if built.options.stripped else None
    scratch = _scratch.setdefault(device, Scratch())
    with device.lock:  # opening may wait for the whole GPU, which a stream that captures forbids
        engine = TensorRTEngine(part, bundle.parts[part], built, device, scratch, graph)
    if not options.cuda_graphs:
        engine.capture = "never"
    return engine


def _without(part: str, error: EngineError) -> str:
    return str(error).removeprefix(f"{part}: ")
