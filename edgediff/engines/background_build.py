"""Builds engine files of several parts in a thread, one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from ..errors import EngineError
from .tensorrt.cache import BuiltEngine
from .tensorrt.child import Progress


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
        one: Callable[[str, Progress, threading.Event], BuiltEngine],
        ready: Callable[[str, BuiltEngine], None],
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
