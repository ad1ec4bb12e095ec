"""Has TensorRT engine files built by a child process, and keeps them in the cache."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...bundle.manifest import Bundle
from ...errors import ArgumentError, EngineError, choices
from .builder import BuildOrder
from .cache import COMPATIBLE, BuiltEngine, EngineCache, EngineSource, Platform, source
from .child import BuildProcess, Progress, environment
from .installed import numbers_of
from .profiles import Ranges, profile

COMMAND = (sys.executable, "-m", "edgediff.engines.tensorrt.builder")
ROOM = 1.2  # disk space for a plan, in sizes of its graph with weights


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Args:
        ranges: shapes that the plan must serve.
        workspace: most GPU memory in bytes that a kernel may take; all when None.
        level: 0 .. 5, how long to look for fast kernels; TensorRT's own (3) when None.
        hardware: none, ampere_plus or same_compute_capability: other GPUs that the plan shall run on.
        version_compatible: whether newer TensorRTs shall run it, the lean runtime among them.
        stripped: leave the weights out; they come from the ONNX file when the plan is opened.
        memory_limit: most host memory in bytes; 90 % of what is free when None. Watched on Linux.

    Raises:
        ArgumentError: a value out of range.
    """

    ranges: Ranges = field(default_factory=Ranges)
    workspace: int | None = None
    level: int | None = None
    hardware: str = "none"
    version_compatible: bool = False
    stripped: bool = False
    memory_limit: int | None = None

    def __post_init__(self) -> None:
        if self.hardware not in COMPATIBLE:
            raise ArgumentError(f"no hardware compatibility {self.hardware!r}; choose from {choices(COMPATIBLE)}")
        if self.level is not None and self.level not in range(6):
            raise ArgumentError(f"level is {self.level!r}; it must be 0 .. 5")
        for name in ("workspace", "memory_limit"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ArgumentError(f"{name} is {value!r}; it must be a number of bytes")


def describe_plan(bundle: Bundle, part: str, recipe: BuildOptions, here: Platform) -> tuple[EngineSource, BuiltEngine]:
    """What a part's plan would be built from and for. Raises as ``plans.source`` and ``shapes.profile``."""
    made_of = source(bundle, part)
    return made_of, BuiltEngine(
        part=part,
        graph=made_of.graph,
        weights=made_of.weights,
        gpu=here.gpu,
        capability=here.capability,
        tensorrt=here.tensorrt,
        machine=here.machine,
        profile=profile(bundle, part, recipe.ranges),
        level=recipe.level,
        hardware=recipe.hardware,
        version_compatible=recipe.version_compatible,
        stripped=recipe.stripped,
    )


def build_part(
    bundle: Bundle,
    part: str,
    recipe: BuildOptions,
    here: Platform,
    cache: EngineCache,
    ordinal: int = 0,
    *,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
    background: bool = False,
    command: Sequence[str] = COMMAND,
) -> BuiltEngine:
    """Build a part's plan and put it into the cache.

    Args:
        bundle, part: what.
        recipe: how.
        here: the GPU and TensorRT; the child's must be the same.
        cache: where the plan goes, once it is whole.
        ordinal: of the CUDA device.
        progress: called in this thread as the build goes on.
        cancel: set it from another thread to stop.
        background: give way to other work on the processors.
        command: the child.

    Raises:
        EngineError: nothing to build from, no room, the build failed, died, or took too much memory.
        BuildCancelled: ``cancel`` was set.
    """
    made_of, plan = describe_plan(bundle, part, recipe, here)
    started = time.monotonic()
    room = int(ROOM * made_of.size) if not recipe.stripped else made_of.size // 10
    with cache.scratch(room) as folder:
        built = folder / "plan"
        order = BuildOrder(
            graph=str(made_of.path.resolve()),
            plan=str(built),
            profile={name: [list(shape) for shape in three] for name, three in plan.profile.items()},
            workspace=recipe.workspace,
            level=recipe.level,
            hardware=recipe.hardware,
            version_compatible=recipe.version_compatible,
            stripped=recipe.stripped,
            timing=str(cache.timing(here)),
            background=background,
        )
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as words:
            child = BuildProcess(part, command, environment(ordinal), words, recipe.memory_limit)
            built_by = child.run(order, progress or (lambda *_: None), cancel or threading.Event())
        if numbers_of(built_by) != here.tensorrt:
            own = ".".join(map(str, here.tensorrt))
            raise EngineError(f"{part}: the build found TensorRT {built_by}, this process has {own}")
        if not built.is_file() or built.stat().st_size == 0:
            raise EngineError(f"{part}: the build ended well and left no plan")
        return cache.publish(built, _with_seconds(plan, time.monotonic() - started))


def _with_seconds(plan: BuiltEngine, seconds: float) -> BuiltEngine:
    facts = {name: getattr(plan, name) for name in BuiltEngine.__dataclass_fields__}
    return BuiltEngine(**{**facts, "seconds": round(seconds, 1)})
