"""Draw every line of a text file, and one contact sheet of them all.

python -m edgediff.examples.batch prompts.txt pictures/ --seed 7
"""

from __future__ import annotations

import argparse
import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import edgediff

CELL, CAPTION = 192, 40  # pixels: the side of a picture on the sheet, and the height of the words below it


def read_prompts(path: Path) -> list[tuple[int, str]]:
    """Read the numbered lines of a file, without empty ones and comments."""
    lines = enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1)
    return [(number, line.strip()) for number, line in lines if line.strip() and not line.lstrip().startswith("#")]


def contact_sheet(cells: Sequence[tuple[str, Any]]) -> Any:
    """Put captioned Pillow images side by side, in about as many rows as columns."""
    from PIL import Image, ImageDraw, ImageOps

    columns = math.ceil(math.sqrt(len(cells)))
    sheet = Image.new("RGB", (columns * CELL, math.ceil(len(cells) / columns) * (CELL + CAPTION)), "white")
    pen = ImageDraw.Draw(sheet)
    for k, (caption, image) in enumerate(cells):
        x, y = k % columns * CELL, k // columns * (CELL + CAPTION)
        sheet.paste(ImageOps.pad(image, (CELL, CELL), color="white"), (x, y))
        words = textwrap.fill(caption, 28, max_lines=2, placeholder=" ...")
        pen.text((x + CELL // 2, y + CELL + 4), words, "black", anchor="ma", align="center", font_size=13)
    return sheet


def draw_all(prompts: Sequence[tuple[int, str]], args: argparse.Namespace) -> None:
    """Check every prompt before the first is drawn, then draw them batch after batch."""
    if not prompts or args.batch < 1:
        raise edgediff.ArgumentError(f"prompts are {len(prompts)} and batch is {args.batch}; both must be at least 1")
    pipe = edgediff.load(args.model)
    for number, prompt in prompts:  # stream() checks its arguments now, and draws when it is read
        try:
            pipe.stream(prompt, num_inference_steps=args.steps, seed=args.seed)
        except edgediff.PromptError as error:
            raise edgediff.PromptError(f"{args.prompts}, line {number}: {error}") from error
    args.out.mkdir(parents=True, exist_ok=True)
    cells = []
    for some in (prompts[k : k + args.batch] for k in range(0, len(prompts), args.batch)):
        result = pipe([prompt for _, prompt in some], num_inference_steps=args.steps, seed=[args.seed] * len(some))
        for (number, prompt), image in zip(some, result.images, strict=True):
            name = re.sub(r"\W+", "-", prompt)[:40].strip("-")
            print(edgediff.save(image, args.out / f"{number:03}-{name}.png"), flush=True)
            image.thumbnail((CELL, CELL))  # the sheet needs no more of it
            cells.append((prompt, image))
    print(edgediff.save(contact_sheet(cells), args.out / "sheet.png"))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m edgediff.examples.batch", description="Draw every line of a file.")
    parser.add_argument("prompts", type=Path, help="a text file, one prompt a line; # begins a comment")
    parser.add_argument("out", type=Path, help="the folder of the pictures; it is made when it is missing")
    parser.add_argument("--model", metavar="BUNDLE", help="default: the built-in emoji model")
    parser.add_argument("--steps", type=int, metavar="N", help="default: the model's")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of every picture (default: 0)")
    parser.add_argument("--batch", type=int, default=4, metavar="N", help="pictures drawn at once (default: 4)")
    args = parser.parse_args(argv)
    try:
        draw_all(read_prompts(args.prompts), args)
    except (edgediff.EdgediffError, OSError, UnicodeError) as error:
        parser.exit(2, f"batch: {error}\n")


if __name__ == "__main__":
    main()
