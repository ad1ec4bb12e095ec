"""What each precision costs the built-in model's pictures: the measures of its card, and the distance from fp32.

    python -m benchmarks.precisions [--count 200]

Exports the model's source in every precision and draws the same triples (object, colour, seed) as benchmarks.quality.
fp16 is drawn by the graph that rounds to fp16 wherever the exported one holds it, since ONNX Runtime computes fp16 on a
CPU in fp32.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import edgediff
from benchmarks.common import PIPELINE, table, write
from edgediff.bundle.manifest import Bundle
from edgediff.bundle.reading import read_bundle
from edgediff.compare import psnr
from edgediff.engines.session import OnnxRuntimeEngine
from edgediff_export.convert import export
from edgediff_export.onnx_graph.graph import read_graph, write_graph
from edgediff_export.precision.precisions import PRECISIONS, seen_graph
from tests.support.quality import Judge, draw, measure, prompt, triples

PACKAGES = ("edgediff", "numpy", "onnxruntime", "torch", "diffusers")


def as_computed(bundle: Bundle, fp32: Path, folder: Path) -> edgediff.Pipeline:
    """Open the bundle's pipeline with every part as its precision computes it."""
    pipe = edgediff.Pipeline(bundle)
    for name, part in bundle.parts.items():
        precision = bundle.parity[name]["precision"]
        if PRECISIONS[precision].seen is not None:
            path = folder / f"{precision}.{name}.onnx"
            kept = bundle.parity[name].get("kept_fp32", {})
            write_graph(seen_graph(read_graph(fp32 / f"{name}.onnx"), precision, kept)[1], path)
            pipe.set_engine(name, OnnxRuntimeEngine(name, path, part))
    return pipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--no-write", action="store_true", help="print only")
    args = parser.parse_args()
    judge, results = Judge(), {}
    asked = triples(args.count, judge.glyphs)[:40]
    words, seeds = [prompt(judge.glyphs[g], c) for g, c, _ in asked], [s for _, _, s in asked]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        reference: Any = None
        for precision in PRECISIONS:
            out = export(PIPELINE, folder / precision, precision=precision, defaults={"guidance_scale": 2.0})
            bundle = read_bundle(out)
            pipe = as_computed(bundle, folder / "fp32", folder)
            pictures = draw(pipe, words, seeds, sampler="dpmpp_2m")
            reference = pictures if reference is None else reference
            distances = [psnr(a, b) for a, b in zip(pictures, reference, strict=True)]
            results[precision] = {
                **measure(pipe, judge, args.count, sampler="dpmpp_2m"),
                "psnr_median": float(np.median(distances)),
                "psnr_least": min(distances),
                "unet_relative_error": bundle.parity["unet"]["relative"],
                "unet_mb": sum(f.size for n, f in bundle.files() if n == "unet") / 1e6,
            }
    print(table(
        ["", "background", "object (CLIP)", "top-5", "object (pixels)", "PSNR to fp32, median", "least", "U-Net error",
         "U-Net MB"],
        [[name, f"{r['background']:.1%}", f"{r['clip_top1']:.1%}", f"{r['clip_top5']:.1%}", f"{r['pixel_top1']:.1%}",
          f"{r['psnr_median']:.1f} dB", f"{r['psnr_least']:.1f} dB", f"{r['unet_relative_error']:.1e}",
          f"{r['unet_mb']:.1f}"] for name, r in results.items()],
    ))  # fmt: skip
    if not args.no_write:
        write("precisions", {"count": args.count, "psnr_count": len(asked), "measures": results}, PACKAGES)


if __name__ == "__main__":
    main()
