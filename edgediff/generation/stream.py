"""The steps of one run, for one reader at a time."""

from __future__ import annotations

import threading
from collections.abc import Generator
from types import TracebackType
from typing import Any

from ..errors import ArgumentError
from .step import Step


class Stream(Generator[Step, None, None]):
    """A stream yields the steps of a run; closing it, or letting it go, cancels.

    Threads may take turns. Two at once, or a hook that asks for the step that it runs in, are an ``ArgumentError``; the
    run goes on.
    """

    def __init__(self, steps: Generator[Step, None, None]) -> None:
        self._steps = steps
        self._reading = threading.Lock()

    def send(self, value: None, /) -> Step:
        return self._alone(self._steps.send, value)

    def throw(self, error: Any, value: Any = None, traceback: TracebackType | None = None, /) -> Step:
        return self._alone(self._steps.throw, error if value is None else value)

    def _alone(self, go_on: Any, value: Any) -> Step:
        if not self._reading.acquire(blocking=False):
            raise ArgumentError(
                "this stream is in a step already; read it from one thread at a time, or give each thread a stream"
            )
        try:
            step: Step = go_on(value)
        finally:
            self._reading.release()
        return step
