"""A progress line on stderr, and only on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from ..generation.step import Step

WIDTH = 30


def progress(steps: Iterable[Step]) -> Iterator[Step]:
    """Pass ``steps`` on, drawing ``[#####....] 5/20  31.2 it/s`` as they come."""
    stream = sys.stderr
    if stream is None or not stream.isatty():
        yield from steps
        return
    start, done = time.monotonic(), 0
    try:
        for done, step in enumerate(steps, 1):
            filled = WIDTH * done // step.total
            rate = done / max(time.monotonic() - start, 1e-9)
            bar = "#" * filled + "." * (WIDTH - filled)
            stream.write(f"\r[{bar}] {done}/{step.total}  {rate:.1f} it/s ")
            stream.flush()
            yield step
    finally:
        if done:
            stream.write("\n")


@contextmanager
def bar(what: str) -> Iterator[Callable[[float, str], None]]:
    """A function that draws ``what [#####....] 17%  4:05 left  phase`` for a share of the work, 0 .. 1."""
    stream, start = sys.stderr, time.monotonic()
    shown = stream is not None and stream.isatty()

    def draw(share: float, phase: str) -> None:
        if not shown:
            return
        filled = int(WIDTH * share)
        left = (time.monotonic() - start) * (1 - share) / share if share > 0 else 0.0
        line = (
            f"{what} [{'#' * filled}{'.' * (WIDTH - filled)}] {share:.0%}  {int(left // 60)}:{int(left % 60):02} left"
        )
        stream.write(f"\r\033[K{line}  {phase[:40]}")
        stream.flush()

    try:
        yield draw
    finally:
        if shown:
            stream.write("\r\033[K")
            stream.flush()
