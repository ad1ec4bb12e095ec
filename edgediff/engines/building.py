"""Has TensorRT plans built by a child process: progress, cancelling, a cap on its memory, and what it died of."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from ..bundle.manifest import Bundle
from ..errors import ArgumentError, EngineError, choices
from .build_plan import Order
from .plans import COMPATIBLE, Cache, Description, Here, Source, source
from .preflight import numbers_of
from .shapes import Ranges, profile

COMMAND = (sys.executable, "-m", "edgediff.engines.build_plan")
POLL = 0.1  # seconds
GRACE = 3.0  # seconds for a child to end by itself
SHARE = 0.9  # of the memory that is free when a build begins
ROOM = 1.2  # disk space for a plan, in sizes of its graph with weights
TAIL = 3  # lines of a dead child's last words

Progress = Callable[[str, float, str], None]  # part, share of the work 0 .. 1, name of the phase


class BuildCancelled(EngineError):
    """A build was cancelled; the cache is as it was."""


@dataclass(frozen=True)
class Recipe:
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


def describe_plan(bundle: Bundle, part: str, recipe: Recipe, here: Here) -> tuple[Source, Description]:
    """What a part's plan would be built from and for. Raises as ``plans.source`` and ``shapes.profile``."""
    made_of = source(bundle, part)
    return made_of, Description(
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
    recipe: Recipe,
    here: Here,
    cache: Cache,
    ordinal: int = 0,
    *,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
    background: bool = False,
    command: Sequence[str] = COMMAND,
) -> Description:
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
        order = Order(
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
            child = _Child(part, command, environment(ordinal), words, recipe.memory_limit)
            built_by = child.run(order, progress or (lambda *_: None), cancel or threading.Event())
        if numbers_of(built_by) != here.tensorrt:
            own = ".".join(map(str, here.tensorrt))
            raise EngineError(f"{part}: the build found TensorRT {built_by}, this process has {own}")
        if not built.is_file() or built.stat().st_size == 0:
            raise EngineError(f"{part}: the build ended well and left no plan")
        return cache.publish(built, _with_seconds(plan, time.monotonic() - started))


def _with_seconds(plan: Description, seconds: float) -> Description:
    facts = {name: getattr(plan, name) for name in Description.__dataclass_fields__}
    return Description(**{**facts, "seconds": round(seconds, 1)})


def environment(ordinal: int) -> dict[str, str]:
    """Of a child that sees one GPU alone, and finds edgediff where this process did."""
    out = dict(os.environ)
    seen = [name.strip() for name in out.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    out["CUDA_VISIBLE_DEVICES"] = seen[ordinal] if 0 <= ordinal < len(seen) else str(max(0, ordinal))
    if not seen:
        out.setdefault("CUDA_DEVICE_ORDER", "FASTEST_FIRST")  # as the driver numbers them without the variable
    root = str(Path(__file__).parents[2])
    out["PYTHONPATH"] = os.pathsep.join(filter(None, [out.get("PYTHONPATH", ""), root]))
    return out


class _Child:
    """One build's process."""

    def __init__(
        self, part: str, command: Sequence[str], env: Mapping[str, str], words: IO[str], limit: int | None
    ) -> None:
        self._part, self._words = part, words
        self._limit = limit or int(SHARE * free_memory()) or None
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                text=True,
                encoding="utf-8",
                errors="replace",
                env=dict(env),
            )
        except OSError as error:
            raise EngineError(f"{part}: the build cannot start {command[0]}: {error}") from error
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def run(self, order: Order, progress: Progress, cancel: threading.Event) -> str:
        """Until the plan is written; the version of TensorRT that did. Whatever happens, the process is gone then."""
        done, failed = "", ""
        try:
            assert self._process.stdin is not None
            with suppress(OSError):  # a child that is dead already says why below
                self._process.stdin.write(json.dumps(asdict(order)) + "\n")
                self._process.stdin.flush()
            for event in self._events(cancel):
                if event["event"] == "progress":
                    progress(self._part, float(event["share"]), str(event["phase"]))
                done = str(event["tensorrt"]) if event["event"] == "done" else done
                failed = str(event.get("reason", "")) if event["event"] == "failed" else failed
            while (code := self._process.poll()) is None:
                self._watch(cancel)
                time.sleep(POLL)
        finally:
            self._end()
        if failed:
            raise EngineError(f"{self._part}: {failed}")
        if code or not done:
            raise EngineError(f"{self._part}: the build {_how(code)}{self._last_words()}")
        progress(self._part, 1.0, "")
        return done

    def _events(self, cancel: threading.Event) -> Any:
        while True:
            self._watch(cancel)
            try:
                line = self._lines.get(timeout=POLL)
            except queue.Empty:
                continue
            if line is None:
                return
            try:
                event = json.loads(line)
                yes = isinstance(event, dict) and "event" in event
            except ValueError:
                yes = False
            if yes:
                yield event

    def _watch(self, cancel: threading.Event) -> None:
        if cancel.is_set():
            raise BuildCancelled(f"{self._part}: the build was cancelled")
        used = resident(self._process.pid)
        if self._limit is not None and used > self._limit:
            raise EngineError(
                f"{self._part}: the build took {used / 1e9:.1f} GB of memory, above its limit of "
                f"{self._limit / 1e9:.1f} GB; give it more, or build on a larger machine"
            )

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _end(self) -> None:
        """The child ends itself when stdin closes; one that does not is made to."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        for stop in (None, self._process.terminate, self._process.kill):
            if stop is not None:
                stop()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE)
                break
        self._reader.join(GRACE)
        self._process.stdout.close()

    def _last_words(self) -> str:
        self._words.seek(0)
        lines = [line.strip() for line in self._words.read().splitlines() if line.strip()]
        return ": " + "; ".join(lines[-TAIL:]) if lines else ""


def _how(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"ended with code {code}" if code else "ended without a plan"


def resident(pid: int) -> int:
    """Bytes of memory that a process holds, less the pages of files, which the system can drop; 0 where it does not
    tell.
    """
    status = Path(f"/proc/{pid}/status")
    return 1024 * (_kilobytes(status, "RssAnon:") + _kilobytes(status, "RssShmem:"))


def free_memory() -> int:
    """Bytes that this machine can give without swapping; 0 where the system does not tell."""
    return 1024 * _kilobytes(Path("/proc/meminfo"), "MemAvailable:")


def _kilobytes(file: Path, name: str) -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith(name):
                return int(line.split()[1])
    return 0


class Build:
    """Plans of several parts, built one after the other in a thread; what is ready is handed on at once.

    Args:
        parts: whose.
        one: builds a part: (part, progress, cancel) -> the plan.
        ready: called in the thread with each plan.
    """

    def __init__(
        self,
        parts: Sequence[str],
        one: Callable[[str, Progress, threading.Event], Description],
        ready: Callable[[str, Description], None],
    ) -> None:
        self.parts = tuple(parts)
        self.errors: dict[str, EngineError] = {}
        self._shares = dict.fromkeys(parts, 0.0)
        self._one, self._ready, self._cancel = one, ready, threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgediff-build", daemon=True)
        self._thread.start()

    @property
    def share(self) -> float:
        """Of the work, 0 .. 1; parts count alike."""
        return sum(self._shares.values()) / max(1, len(self._shares))

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def cancel(self) -> None:
        """Stop; plans that are ready stay."""
        self._cancel.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Until all is built, failed or cancelled; False when that took longer than ``timeout`` seconds."""
        self._thread.join(timeout)
        return not self.running

    def _run(self) -> None:
        for part in self.parts:
            try:
                plan = self._one(part, self._told, self._cancel)
                self._ready(part, plan)
            except EngineError as error:
                self.errors[part] = error
            except Exception as error:
                self.errors[part] = EngineError(f"{part}: the build failed: {type(error).__name__}: {error}")
            self._shares[part] = 1.0
            if self._cancel.is_set():
                return

    def _told(self, part: str, share: float, phase: str) -> None:
        self._shares[part] = share
