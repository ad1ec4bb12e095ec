"""The script of kills, with three of each; ``python -m tests.endurance.kills`` for two hundred."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .kills import PROGRAMS, Program, kill


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("program", PROGRAMS)
def test_three_kills(program: str, tmp_path: Path) -> None:
    """In a process of its own, since it forks."""
    if program == "export":
        pytest.importorskip("torch", reason="torch is not installed (extra test)")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    command = [sys.executable, "-m", "tests.endurance.kills", program, "--times", "3", "--out", str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stdout + run.stderr
    figures = json.loads((tmp_path / "out").read_text())
    assert figures["hits"] == 3
    assert figures["notes"] == []


def careless(work: Path) -> int:
    """Writes its result piece by piece under its name, and something beside it; another run does not mend it."""
    import time

    if (work / "out").exists():
        return 3
    (work / "more").mkdir()
    with (work / "out").open("wb") as f:
        for _ in range(50):
            f.write(b"piece")
            f.flush()
            time.sleep(0.01)
    (work / "more").rmdir()
    return 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_careless_program_is_seen(tmp_path: Path) -> None:
    figures = kill("careless", Program(careless, "out"), 3, tmp_path)
    assert (figures.hits, figures.half, figures.failed, figures.different, figures.left_over) == (3, 3, 3, 3, 3)
    assert not figures.good
