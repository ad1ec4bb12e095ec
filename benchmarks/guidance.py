"""What the ways of guidance do to pictures, and what an interval saves.

    python -m benchmarks.guidance

A contact sheet of the built-in model, seed 7, at a scale far above its own (7 where 2 is right); and the time of a
warm picture with guidance throughout, in an interval, and off, as ratios in one run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from PIL import Image, ImageDraw, ImageFont

import edgediff
from benchmarks.common import RESULTS, table, write

PROMPTS = ["a red apple on a blue background", "a tiger on a green background", "a fish on a yellow background"]
WAYS: dict[str, dict[str, Any]] = {
    "2 (default)": {"guidance_scale": 2.0},
    "7": {"guidance_scale": 7.0},
    "7, 0.2 to 0.8": {"guidance_scale": 7.0, "guidance_interval": (0.2, 0.8)},
    "7, rescale 0.7": {"guidance_scale": 7.0, "guidance_rescale": 0.7},
    "7, threshold": {"guidance_scale": 7.0, "dynamic_thresholding_ratio": 0.995},
    "7, APG": {"guidance_scale": 7.0, "guidance": "apg"},
    "CFG++ 0.6": {"guidance": "cfg++", "sampler": "ddim"},
}
INTERVALS = {"throughout": None, "0.2 to 0.8": (0.2, 0.8), "off": (0.0, 0.0)}
ROUNDS = 15


def sheet(pipe: edgediff.Pipeline) -> None:
    """Draw ways x prompts, ``benchmarks/results/guidance_sheet.png``."""
    size, gap, top = 96, 8, 22
    canvas = Image.new("RGB", (len(WAYS) * (size + gap), top + len(PROMPTS) * (size + gap)), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=12)
    for column, (label, arguments) in enumerate(WAYS.items()):
        pen.text((column * (size + gap) + 2, 4), label, fill="black", font=font)
        for line, image in enumerate(pipe(PROMPTS, seed=7, **arguments).images):
            canvas.paste(image.resize((size, size)), (column * (size + gap), top + line * (size + gap)))
    canvas.quantize(256).save(RESULTS / "guidance_sheet.png", optimize=True)


def times(pipe: edgediff.Pipeline) -> dict[str, float]:
    """Give the median time of a picture over that with guidance throughout, round by round."""
    ratios: dict[str, list[float]] = {name: [] for name in INTERVALS}
    for _ in range(ROUNDS):
        spent = {}
        for name, interval in INTERVALS.items():
            start = time.perf_counter()
            pipe(PROMPTS[0], seed=7, guidance_interval=interval)
            spent[name] = time.perf_counter() - start
        for name in INTERVALS:
            ratios[name].append(spent[name] / spent["throughout"])
    return {name: round(statistics.median(values), 3) for name, values in ratios.items()}


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    pipe = edgediff.load().warm()
    sheet(pipe)
    found = times(pipe)
    print(table(["guidance", "time over guidance throughout"], [[k, f"{v:.2f}"] for k, v in found.items()]))
    write("guidance", {"time_ratio": found, "rounds": ROUNDS}, ("edgediff", "numpy", "onnxruntime"))


if __name__ == "__main__":
    main()
