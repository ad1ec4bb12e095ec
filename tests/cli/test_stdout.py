"""What is printed: after the pictures are kept, spelled for any stdout, and nothing that a terminal would obey."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgediff.cli import main as cli


def generate(bundle: Path, folder: Path, name: str | bytes, *more: str, **environment: str) -> Any:
    """Run the command in a process of its own, in ``folder``."""
    command = [
        sys.executable,
        "-m",
        "edgediff",
        "generate",
        "cat",
        "--model",
        str(bundle),
        "--steps",
        "1",
        "--seed",
        "3",
    ]
    return subprocess.run(
        [*command, "-o", name, *more], cwd=folder, capture_output=True, env=os.environ | environment, check=False
    )


@pytest.mark.skipif(sys.platform == "win32", reason="its names are not bytes")
@pytest.mark.parametrize(
    ("name", "encoding", "said"),
    [
        ("bé.png", "ascii", [b"b\\xe9-%d.png (seed %d)" % (k, 3 + k) for k in range(3)]),
        ("bé.png", "utf-8", [b"b\xc3\xa9-%d.png (seed %d)" % (k, 3 + k) for k in range(3)]),
        (b"b\xff.png", "utf-8:strict", [b"b\\udcff-%d.png (seed %d)" % (k, 3 + k) for k in range(3)]),
    ],
)
def test_a_batch_is_kept_whole_whatever_stdout_can_spell(
    tiny_bundle: Path, tmp_path: Path, name: Any, encoding: str, said: list[bytes]
) -> None:
    run = generate(tiny_bundle, tmp_path, name, "--batch", "3", PYTHONIOENCODING=encoding, PYTHONUTF8="1")
    assert (run.returncode, run.stderr) == (0, b"")
    assert run.stdout.splitlines() == said
    stem = os.fsencode(name).removesuffix(b".png")
    assert sorted(os.listdir(os.fsencode(tmp_path))) == [stem + b"-%d.png" % k for k in range(3)]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full")
def test_a_batch_is_kept_whole_where_stdout_is_full(tiny_bundle: Path, tmp_path: Path) -> None:
    base = f'"{sys.executable}" -m edgediff generate cat --model "{tiny_bundle}" --steps 1 --batch 3'
    run = subprocess.run(["bash", "-c", f"{base} > /dev/full"], cwd=tmp_path, capture_output=True, check=False)
    assert (run.returncode, run.stderr) == (2, b"edgediff: [Errno 28] No space left on device\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out-0.png", "out-1.png", "out-2.png"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "x", "-o", "\x1b]0;owned\x07\n.gif"],
        ["generate", "x", "--sampler", "\x1b[2J"],
        ["generate", "x", "--size", "\x1b[2J"],
        ["plan", "--spacing", "a\nedgediff: b"],
        ["generate", "x", "--\x1b[2J"],
        ["generate", "x", "--steps", "\x1b[2J" * 10**5],
        ["generate", "x", "--sampler", "x" * 10**6],
        ["generate", "x", "--image", "\x1b[2J" * 10],
        ["\u202e"],
    ],
)
def test_errors_are_one_short_line_that_no_terminal_obeys(
    arguments: list[str], tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(tiny_bundle)] if len(arguments) > 1 else []
    assert cli.main(arguments + model) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n")
    assert err[:-1].isprintable()
    assert len(err) < 2500


def test_stdout_has_its_own_errors_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", stdout)
    assert cli.main(["samplers"]) == 0
    assert stdout.errors == "strict"


def test_a_stdout_that_fails_to_spell_is_said(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Narrow(io.StringIO):
        def write(self, text: str) -> int:
            text.encode("ascii")
            return super().write(text)

    monkeypatch.setattr(sys, "stdout", Narrow())
    path = tmp_path / "bé.png"
    assert cli.main(["generate", "cat", "--model", str(tiny_bundle), "--steps", "1", "-o", str(path)]) == 2
    assert "edgediff: stdout cannot spell what there is to say" in capsys.readouterr().err
    assert path.exists()
