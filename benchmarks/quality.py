"""Does the built-in model draw what it is asked for? Measured by CLIP and, independently, by plain pixels.

    python -m benchmarks.quality [--sheet] [--strip]

200 (object, colour, seed) triples. Background: the median colour of the outer ring is nearest the one asked for.
Object: rank of the asked glyph among all glyphs drawn on that background, by cosine of the CLIP image tower and by
squared pixel distance. ``--sheet`` also writes the contact sheet: every object once, seed 0, unpicked. ``--strip``
writes every eighth picture of it, two rows for the README.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import edgediff
from benchmarks.common import RESULTS, table, write
from edgediff_export.reference_model.glyphs import COLOURS, Glyph, core_glyphs, sheet
from tests.support.quality import Judge, draw, measure, prompt


def contact_sheet(pipe: edgediff.Pipeline, glyphs: list[Glyph], path: Path, columns: int = 16, every: int = 1) -> None:
    """Draw every object once, or each ``every``-th, on the colours in turn, with seed 0 for every prompt."""
    names = list(COLOURS)
    prompts = [prompt(g, names[k % len(names)]) for k, g in enumerate(glyphs)][::every]
    sheet(draw(pipe, prompts, [0] * len(prompts)), columns, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a bundle's folder (default: the built-in model)")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, nargs="*", help="scales (default: 1 and the model's)")
    parser.add_argument("--sampler")
    parser.add_argument("--sheet", action="store_true", help="write results/contact_sheet.png")
    parser.add_argument("--strip", action="store_true", help="write results/strip.png, and measure nothing")
    parser.add_argument("--no-write", action="store_true", help="print only")
    args = parser.parse_args()
    pipe = edgediff.load(args.model)
    if args.strip:
        contact_sheet(pipe, core_glyphs(), RESULTS / "strip.png", columns=7, every=8)
        return
    judge = Judge()
    scales = args.guidance or [1.0, pipe.bundle.defaults.guidance_scale]
    results = {}
    for scale in scales:
        results[f"guidance {scale:g}"] = measure(
            pipe, judge, args.count, guidance_scale=scale, num_inference_steps=args.steps, sampler=args.sampler
        )
    keys = list(next(iter(results.values())))
    print(table(["", *keys], [[name, *(f"{row[k]:.1%}" for k in keys)] for name, row in results.items()]))
    if not args.no_write:
        facts = {"count": args.count, "steps": args.steps, "bundle": pipe.bundle.id, "measures": results}
        write("quality", facts, ("edgediff", "numpy", "onnxruntime"))
    if args.sheet:
        RESULTS.mkdir(exist_ok=True)
        contact_sheet(pipe, judge.glyphs, RESULTS / "contact_sheet.png")


if __name__ == "__main__":
    main()
