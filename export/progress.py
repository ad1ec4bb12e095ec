"""What an export is doing, how far it is, and about how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

WIDTH = 20


class Progress:
    """Reports the start of each step with the share done and an estimate of the time left.

    Args:
        costs: estimated seconds of each step, by name, in order; the estimate is scaled by how long steps really took.
        report: called with a line of text.
    """

    def __init__(self, costs: Mapping[str, float], report: Callable[[str], None]) -> None:
        self._costs, self._report = dict(costs), report
        self._total, self._spent = sum(costs.values()), 0.0
        self._current: str | None = None
        self._began = time.monotonic()
        self._real = 0.0

    def start(self, step: str) -> None:
        """Begin a step; the one before it is done."""
        now = time.monotonic()
        if self._current is not None:
            self._spent += self._costs.pop(self._current)
            self._real += now - self._began
        self._current, self._began = step, now
        left = sum(self._costs.values()) * (self._real / self._spent if self._spent else 1.0)
        share = self._spent / self._total
        done = round(WIDTH * share)
        self._report(f"[{'#' * done}{'.' * (WIDTH - done)}] {share:4.0%}, {_about(left)} left: {step}")

    def skip(self, step: str) -> None:
        """A step was finished before."""
        self._total -= self._costs.pop(step)
        self._report(f"{step}: finished before")

    def say(self, line: str) -> None:
        self._report(line)


def _about(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min"
