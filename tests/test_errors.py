"""A message repeats any value: short, on one line, harmless."""

from __future__ import annotations

import sys

import pytest

from edgediff.errors import SHOWN, printable, shown


class Mute:
    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, b"x" * 10**6, [0] * 10**5, Mute(), [Mute()], 10**5000, "\ud800", "\x1b]0;owned\x07", "a\nb"],
    ids=["text", "bytes", "list", "object", "holder", "number", "surrogate", "escape", "newline"],
)
def test_any_value_is_shown(value: object) -> None:
    text = shown(value)
    assert len(text) < SHOWN + 60
    assert text.isprintable()
    assert text.isascii()


def test_plain_values_are_shown_as_they_are() -> None:
    assert [shown(v) for v in ("dpm", 3, 1.5, None, ["é"])] == ["'dpm'", "3", "1.5", "None", "['é']"]


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert printable("red\x1b[2J\u202eapple\n\ud800") == "red\\x1b[2J\\u202eapple\\n\\ud800"
    assert all(printable(chr(c)).isprintable() for c in range(sys.maxunicode + 1))
