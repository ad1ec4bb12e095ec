"""An export shows its progress: which step runs, how far it is, and about how long the rest will take."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from types import TracebackType

from tqdm import tqdm

from edgediff.errors import printable

BAR = "{desc}: {percentage:3.0f}%|{bar:20}| {remaining} left"


class Progress:
    """Goes from step to step, and shows it: by a bar on stderr where that is a terminal, else by a line a step.

    Leave it as a context manager, so that no bar stays on the screen.

    Args:
        costs: estimated seconds of each step, by name, in order; how long steps really took corrects the estimate.
        report: called with lines of text.
        bar: whether a bar may be drawn.
    """

    def __init__(self, costs: Mapping[str, float], report: Callable[[str], None], bar: bool = False) -> None:
        self._costs, self._report = dict(costs), report
        self._current: str | None = None
        self._bar = tqdm(
            total=sum(costs.values()),
            bar_format=BAR,
            dynamic_ncols=True,
            smoothing=0,  # the rate is the mean of all steps: they differ too much for the last ones to tell
            leave=False,
            file=sys.stderr,
            disable=None if bar else True,  # None: where stderr is no terminal
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()

    def start(self, step: str) -> None:
        """Begin a step; the one before it is done."""
        if self._current is not None:
            self._bar.update(self._costs[self._current])
        self._current = step
        self._bar.set_description_str(step)
        if self._bar.disable:
            self._report(step)

    def skip(self, step: str) -> None:
        """Pass over a step that was finished before."""
        self._bar.total -= self._costs[step]
        self._report(f"{step}: finished before")

    def say(self, line: str) -> None:
        """Report a line."""
        self._report(printable(line))  # a stranger's model may be what it speaks of


def print_line(line: str) -> None:
    """Print a line on stderr, above the bar where there is one."""
    tqdm.write(line, file=sys.stderr)
