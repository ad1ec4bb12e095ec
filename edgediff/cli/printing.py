"""What a stranger's file says is printed on its own line, with nothing in it that a terminal would obey."""

from __future__ import annotations

from ..errors import printable


def say(line: str) -> None:
    """Print one line on stdout, at once."""
    print(printable(line), flush=True)
