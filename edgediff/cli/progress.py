"""Bars on stderr, and only on a terminal, drawn by tqdm."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from ..generation.step import Step


def progress(steps: Iterable[Step]) -> Iterator[Step]:
    """Pass ``steps`` on, and draw how many of them are done and how fast they come."""
    if not _on_a_terminal():
        yield from steps
        return
    with _bar(unit="step") as bar:
        for step in steps:
            bar.total = step.total
            bar.update()
            yield step


@contextmanager
def bar(what: str) -> Iterator[Callable[[float, str], None]]:
    """A function that draws a share of the work, 0 .. 1, with the time left and the name of the phase."""
    if not _on_a_terminal():
        yield lambda share, phase: None
        return
    with _bar(
        desc=what, total=1.0, leave=False, bar_format="{desc}: {percentage:3.0f}%|{bar}| {remaining} left{postfix}"
    ) as drawn:

        def draw(share: float, phase: str) -> None:
            drawn.set_postfix_str(phase[:40], refresh=False)
            drawn.update(share - drawn.n)

        yield draw


def _on_a_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _bar(**settings: Any) -> Any:
    from tqdm import tqdm

    return tqdm(file=sys.stderr, dynamic_ncols=True, **settings)
