"""A kind of fuzzing: what it needs, and how one child runs some of its cases."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Protocol

from .children import Report


class Kind(Protocol):
    """One kind of cases. A module of this folder names its own ``KIND``."""

    name: str
    at_once: int  # cases a child

    def prepare(self, work: Path) -> None:
        """Make what every case starts from; once, in the parent."""

    def roots(self, work: Path) -> list[Path]:
        """Folders that every case may read, besides its own."""

    def run(self, numbers: range, seed: int, folder: Path, report: Report) -> None:
        """Run these cases in an empty folder, in a child. A case depends on its number and the seed alone."""


def dice(kind: str, seed: int, number: int) -> Random:
    """The random numbers of one case."""
    return Random(f"{kind} {seed} {number}")
