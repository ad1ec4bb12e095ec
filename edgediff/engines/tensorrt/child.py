"""A child process builds one engine file; its parent reads progress, cancels, caps memory, and tells its end."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from ... import python_child
from ...errors import EngineError
from ...system_memory import free_memory, kilobytes
from .builder import BuildOrder

POLL = 0.1  # seconds
GRACE = 3.0  # seconds for a child to end by itself
MEMORY_SHARE = 0.9  # of the memory that is free when a build begins
TAIL = 3  # lines of a dead child's last words

Progress = Callable[[str, float, str], None]  # part, share of the work 0 .. 1, name of the phase


class BuildCancelled(EngineError):
    """A build was cancelled; the cache is as it was."""


def environment(ordinal: int) -> dict[str, str]:
    """Return the environment of a child that sees one GPU alone."""
    out = python_child.environment()
    seen = [name.strip() for name in out.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    out["CUDA_VISIBLE_DEVICES"] = seen[ordinal] if 0 <= ordinal < len(seen) else str(max(0, ordinal))
    if not seen:
        out.setdefault("CUDA_DEVICE_ORDER", "FASTEST_FIRST")  # as the driver numbers them without the variable
    return out


class BuildProcess:
    """A build process is the child of one build: it is fed its order, watched, and ended.

    Args:
        errors: a file for what the child writes to stderr.
        limit: most bytes of memory; a share of what is free when None.
    """

    def __init__(
        self, part: str, command: Sequence[str], env: Mapping[str, str], errors: IO[str], limit: int | None
    ) -> None:
        self._part, self._errors = part, errors
        self._limit = limit or int(MEMORY_SHARE * (free_memory() or 0)) or None
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
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

    def run(self, order: BuildOrder, progress: Progress, cancel: threading.Event) -> str:
        """Wait until the engine file is written; returns the version of TensorRT that wrote it. Whatever happens, the
        process is gone then.
        """
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
            except ValueError:
                continue
            if isinstance(event, dict) and "event" in event:
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
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return ": " + "; ".join(lines[-TAIL:]) if lines else ""


def _how(code: int) -> str:
    if code < 0:
        with suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
    return f"ended with code {code}" if code else "ended without an engine file"


def resident(pid: int) -> int:
    """Return bytes of memory that a process holds, less the pages of files, which the system can drop; 0 where it does
    not tell.
    """
    status = Path(f"/proc/{pid}/status")
    return (kilobytes(status, "RssAnon:") or 0) + (kilobytes(status, "RssShmem:") or 0)
