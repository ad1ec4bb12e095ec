"""A build has a child process make an engine file, and puts it into the cache."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from ...bundle.manifest import Bundle
from ...errors import EngineError
from ...python_child import command as command_of
from .builder import BuildOrder
from .cache import EngineCache
from .child import BuildProcess, Progress, environment
from .engine_file import BuiltEngine, Platform
from .installed import numbers_of
from .options import BuildOptions
from .profiles import profile
from .source import EngineSource, source_of

COMMAND = tuple(command_of("edgediff.engines.tensorrt.builder"))
ROOM = 1.2  # disk space for an engine file, in sizes of its graph with weights


def describe_engine(
    bundle: Bundle, part: str, options: BuildOptions, platform: Platform
) -> tuple[EngineSource, BuiltEngine]:
    """Tell what a part's engine file would be built from, by and for. Raises as ``source_of`` and ``profile``."""
    source = source_of(bundle, part)
    shapes = profile(bundle, part, options.ranges)
    return source, BuiltEngine(part, source.graph, source.weights, platform, shapes, options)


def build_part(
    bundle: Bundle,
    part: str,
    options: BuildOptions,
    platform: Platform,
    cache: EngineCache,
    ordinal: int = 0,
    *,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
    background: bool = False,
    command: Sequence[str] = COMMAND,
) -> BuiltEngine:
    """Build a part's engine file and put it into the cache.

    Args:
        bundle, part: what.
        options: how.
        platform: the GPU and TensorRT; the child's must be the same.
        cache: where the engine file goes, once it is whole.
        ordinal: of the CUDA device.
        progress: called in this thread as the build goes on.
        cancel: set it from another thread to stop.
        background: give way to other work on the processors.
        command: the child.

    Raises:
        EngineError: nothing to build from, no room, the build failed, died, or took too much memory.
        BuildCancelled: ``cancel`` was set.
    """
    source, built = describe_engine(bundle, part, options, platform)
    started = time.monotonic()
    room = int(ROOM * source.size) if not options.stripped else source.size // 10
    with cache.scratch(room) as folder:
        file = folder / "engine"
        order = BuildOrder(
            graph=str(source.path.resolve()),
            engine=str(file),
            profile={name: [list(shape) for shape in three] for name, three in built.profile.items()},
            options=options,
            timing=str(cache.timing(platform)),
            background=background,
        )
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
            child = BuildProcess(part, command, environment(ordinal), errors, options.memory_limit)
            built_by = child.run(order, progress or (lambda *_: None), cancel or threading.Event())
        if numbers_of(built_by) != platform.tensorrt:
            own = ".".join(map(str, platform.tensorrt))
            raise EngineError(f"{part}: the build found TensorRT {built_by}, this process has {own}")
        if not file.is_file() or file.stat().st_size == 0:
            raise EngineError(f"{part}: the build ended well and left no engine file")
        return cache.publish(file, replace(built, seconds=round(time.monotonic() - started, 1)))
