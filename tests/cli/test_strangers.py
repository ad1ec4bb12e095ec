"""What a stranger's bundle says is printed on its own lines, without a traceback and without orders to the terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgediff.cli.main import main

from ..support.manifest import edit

Folder = Callable[[], Path]
ESCAPES = "\x1b]0;pwned\x07\x1b[2J\u202e"


def printed(command: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(command)
    out = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in out)
    return code, out


@pytest.mark.parametrize("command", ["info", "verify"])
def test_nothing_is_obeyed(damaged: Folder, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    def change(data: dict[str, Any]) -> None:
        data["name"] = data["licence"] = ESCAPES
        data["provenance"]["reference"] = ESCAPES
        for part in data["parts"].values():
            for file in part["files"]:
                file["precision"] = ESCAPES
            for tensor in part["inputs"]:
                tensor["shape"] = [s + ESCAPES if isinstance(s, str) else s for s in tensor["shape"]]

    code, out = printed([command, str(edit(damaged(), change))], capsys)
    assert code == 0
    assert "\\x1b]0;pwned\\x07\\x1b[2J\\u202e" in out


def test_no_line_is_forged(damaged: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    forged = "MIT\nunet.onnx  ok  0123456789\rdefaults"
    root = edit(damaged(), lambda data: data.update(licence=forged, name=forged))
    honest = printed(["info", str(edit(damaged_copy(root), lambda d: d.update(licence="MIT", name="x")))], capsys)[1]
    out = printed(["info", str(root)], capsys)[1]
    assert len(out.splitlines()) == len(honest.splitlines())
    assert "licence    MIT\\nunet.onnx" in out


def damaged_copy(root: Path) -> Path:
    import shutil

    return Path(shutil.copytree(root, root.parent / "copy"))


@pytest.mark.parametrize("value", ["text", None, True, [], {}, -1, 10**12])
@pytest.mark.parametrize("key", ["relative", "max_abs", "ceiling"])
def test_measures_that_are_no_numbers(
    damaged: Folder, key: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    root = edit(damaged(), lambda data: data["parity"]["unet"].update({key: value}))
    assert main(["info", str(root)]) == 2
    said = capsys.readouterr().err
    assert f"parity.unet.{key} is " in said
    assert len(said.splitlines()) == 1


def test_nodes_that_stay_in_fp32_are_counted(damaged: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    root = edit(damaged(), lambda data: data["parity"]["unet"].update(kept_fp32={"/a": "large", "/b": "large"}))
    assert "(relative), 2 nodes in fp32" in printed(["info", str(root)], capsys)[1]


def test_a_bundle_whose_name_is_half_a_character_never_draws(
    damaged: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It drew, and could not be saved."""
    root = edit(damaged(), lambda data: data.update(name="\ud800"))
    assert main(["generate", "x", "--model", str(root), "-o", str(tmp_path / "x.png")]) == 2
    assert "half a character" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("engine", ["onnx", "onnx-data", "onnx-foreign", "x"])
def test_files_of_no_part_that_name_an_engine(damaged: Folder, engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    def change(data: dict[str, Any]) -> None:
        data["golden"]["file"]["engine"] = data["text"][0]["file"]["engine"] = engine

    assert printed(["info", str(edit(damaged(), change))], capsys)[0] == 0
