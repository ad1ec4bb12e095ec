"""A file of prompts becomes pictures and a contact sheet; what is wrong is said before anything is drawn."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import edgediff
from edgediff.examples import batch

PROMPTS = ("a red apple on a blue background", "a tiger on a green background", "a pizza on a white background")
NAMES = ("002-a-red-apple-on-a-blue-background", "004-a-tiger-on-a-green-background")


def test_command(tmp_path: Path, emoji: edgediff.Pipeline) -> None:
    text = f"# fruit\n{PROMPTS[0]}\n\n  {PROMPTS[1]}  \n{PROMPTS[2]}\n"
    (tmp_path / "prompts.txt").write_text(text, encoding="utf-8-sig")
    options = ["--steps", "2", "--seed", "7", "--batch", "2"]
    command = [sys.executable, "-m", "edgediff.examples.batch", "prompts.txt", "new/folder", *options]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    names = [*NAMES, "005-a-pizza-on-a-white-background", "sheet"]
    assert run.stdout.split() == [str(Path("new/folder", f"{name}.png")) for name in names]
    assert run.stderr == ""

    out = tmp_path / "new" / "folder"
    assert {p.name for p in out.iterdir()} == {f"{name}.png" for name in names}
    with Image.open(out / "sheet.png") as opened:
        sheet = opened.copy()
    settings = {"num_inference_steps": 2, "seed": [7, 7]}
    drawn = [*emoji(PROMPTS[:2], **settings).images, emoji(PROMPTS[2], **settings | {"seed": 7}).images[0]]
    row = batch.CELL + batch.CAPTION
    assert sheet.size == (2 * batch.CELL, 2 * row)
    for k, (name, prompt) in enumerate(zip(names[:3], PROMPTS, strict=True)):
        with Image.open(out / f"{name}.png") as image:
            assert image.tobytes() == drawn[k].tobytes()
            assert image.text["parameters"].startswith(prompt)
            x, y = k % 2 * batch.CELL, k // 2 * row
            cell = sheet.crop((x, y, x + batch.CELL, y + batch.CELL))
            assert cell.tobytes() == ImageOps.pad(image, cell.size).tobytes()
        words = np.asarray(sheet.crop((x, y + batch.CELL, x + batch.CELL, y + row)))
        assert words.min() < 64  # they are written
        assert words[:, [0, -1]].min() == 255  # and inside their cell
    assert np.asarray(sheet.crop((batch.CELL, row, *sheet.size))).min() == 255  # nothing in the fourth place


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (b"a cat\n\na (cat\n", [], "prompts.txt, line 3: the ( at character 3 of the prompt is never closed"),
        (b"# nothing\n", [], "prompts are 0 and batch is 4; both must be at least 1"),
        (b"a cat\n", ["--batch", "0"], "prompts are 1 and batch is 0"),
        (b"a cat\n", ["--steps", "0"], "num_inference_steps is 0"),
        (b"a cat\n", ["--seed", "-1"], "seed is -1"),
        (b"a cat\n", ["--model", "nowhere"], "nowhere"),
        (b"a \xff cat\n", [], "can't decode byte 0xff"),
        (None, [], "No such file"),
    ],
)
def test_bad_input_draws_nothing(
    text: bytes | None, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    if text is not None:
        prompts.write_bytes(text)
    with pytest.raises(SystemExit) as exit:
        batch.main([str(prompts), str(out), *options])
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("batch: ")
    assert message in said
    assert len(said.splitlines()) == 1
    assert not out.exists()


def test_a_file_where_the_folder_should_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text(PROMPTS[0], encoding="utf-8")
    out.write_text("kept", encoding="utf-8")
    with pytest.raises(SystemExit):
        batch.main([str(prompts), str(out)])
    assert "File exists" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == "kept"
