"""A progress line on stderr, and only on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator

from .pipeline import Step

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
