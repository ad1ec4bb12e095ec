"""A watch over one call: how long it may take, and what it was doing when time or memory ended."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ..checks import is_number
from ..errors import ArgumentError, DeadlineError, shown
from ..system_memory import memory_named

T = TypeVar("T")


def check_deadline(value: Any) -> float | None:
    """A call's seconds; ``ArgumentError`` for what is no positive, finite number."""
    if value is None:
        return None
    try:
        seconds = float(value) if is_number(value) else 0.0
    except OverflowError:  # a whole number
        seconds = math.inf
    if not 0 < seconds < math.inf:
        raise ArgumentError(f"deadline is {shown(value)}; it must be a positive number of seconds")
    return seconds


class Watch:
    """A watch begins with a call's work, and is asked before each of its stages.

    Args:
        deadline: seconds; None for any time.
    """

    def __init__(self, deadline: float | None) -> None:
        self._deadline, self._began = deadline, time.monotonic()
        self._reached = "its start"

    @contextmanager
    def stage(self, doing: str, reached: str = "") -> Iterator[None]:
        """Do a stage of the work (``drawing the noise``), where there is time; ``reached`` is how far the call is then.

        Raises:
            DeadlineError: the time was over before the stage began.
            MemoryLimitError: memory ended within.
            EngineError: Python's stack ended within.
        """
        self.check()
        with memory_named(doing):
            yield
        self._reached = reached or doing

    def check(self) -> None:
        """Raise ``DeadlineError`` where the time is over."""
        if self._deadline is None:
            return
        taken = time.monotonic() - self._began
        if taken > self._deadline:
            raise DeadlineError(
                f"the call was stopped at {self._reached} after {taken:.1f} s; its deadline is {self._deadline:g} s"
            )

    def over(self, steps: Iterator[T], total: int) -> Iterator[T]:
        """The steps of a loop, of which there are ``total``; raises as ``stage`` and ``check`` between them."""
        for k in range(1, total + 1):
            name = f"step {k} of {total}"
            with self.stage(f"doing {name}", name):
                step = next(steps)
            if k < total:  # what is finished is given
                self.check()
            yield step
        with memory_named("ending the loop"):
            next(steps, None)
