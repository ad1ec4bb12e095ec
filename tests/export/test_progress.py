"""The bar of an export: on a terminal alone, in one line, and gone at the end."""

from __future__ import annotations

import io

import pytest

from edgediff_export.progress import Progress, print_line

COSTS = {"unet: tracing": 3.0, "pictures by torch": 1.0, "unet: int8": 4.0}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_screen(written: str) -> list[str]:
    """The lines that a terminal shows of what was written: a carriage return goes back to the line's begin."""
    lines = []
    for line in written.split("\n"):
        shown = ""
        for piece in line.split("\r"):
            shown = piece + shown[len(piece) :]
        lines.append(shown.rstrip())
    return lines


def run(costs: dict[str, float], bar: bool) -> list[str]:
    """Go through the steps; what was reported."""
    reported: list[str] = []
    with Progress(costs, reported.append, bar) as progress:
        progress.skip("pictures by torch")
        progress.start("unet: tracing")
        progress.start("unet: int8")
        progress.say("unet: int8 is 1e-3 from torch")
    return reported


def test_a_terminal_shows_one_line_and_keeps_none(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    with Progress(COSTS, print_line, bar=True) as progress:
        progress.skip("pictures by torch")
        progress.start("unet: tracing")
        progress.start("unet: int8")
        shown = on_screen(screen.getvalue())
        assert shown[0] == "pictures by torch: finished before"
        assert len(shown) == 2
        assert shown[1].startswith("unet: int8:  43%|")  # 3 of 7: the step that was skipped does not count
        assert shown[1].endswith("left")
        progress.say("unet: int8 is 1e-3 from torch")
        assert on_screen(screen.getvalue())[1] == "unet: int8 is 1e-3 from torch"
        assert on_screen(screen.getvalue())[2].startswith("unet: int8:  43%|")
    assert on_screen(screen.getvalue()) == ["pictures by torch: finished before", "unet: int8 is 1e-3 from torch", ""]


def test_the_bar_goes_when_a_step_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)

    def interrupted() -> None:
        with Progress(COSTS, print_line, bar=True) as progress:
            progress.start("unet: tracing")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "unet: tracing:   0%|" in screen.getvalue()
    assert on_screen(screen.getvalue()) == [""]


@pytest.mark.parametrize("bar", [False, True])
def test_elsewhere_steps_are_lines_and_nothing_is_drawn(capsys: pytest.CaptureFixture[str], bar: bool) -> None:
    reported = run(COSTS, bar)
    assert reported == [
        "pictures by torch: finished before",
        "unet: tracing",
        "unet: int8",
        "unet: int8 is 1e-3 from torch",
    ]
    assert capsys.readouterr() == ("", "")


def test_without_being_asked_a_terminal_stays_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    assert len(run(COSTS, bar=False)) == 4
    assert screen.getvalue() == ""
