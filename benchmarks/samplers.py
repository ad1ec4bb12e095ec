"""Which sampler needs how many steps on the built-in model.

    python -m benchmarks.samplers

PSNR of the decoded pictures against 50 steps of DDIM from the same noise, mean over prompts, by U-Net calls; a plot of
it; and a contact sheet, sampler x steps, of one prompt and seed. Samplers that add fresh noise head for other pictures,
so their PSNR says nothing; they are on the sheet alone. Needs matplotlib (the bench extra).
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import edgediff
from benchmarks.common import RESULTS, table, write
from edgediff.generation.arguments import Arguments
from edgediff.generation.request import plan_for
from edgediff.sampling.samplers import SAMPLERS

PROMPTS = [
    "a red apple on a blue background",
    "a tiger on a green background",
    "a bicycle on a yellow background",
    "a hot air balloon on a white background",
    "a penguin on an orange background",
    "a guitar on a pink background",
    "a cactus on a purple background",
    "a rocket on a black background",
    "a slice of pizza on a gray background",
    "a sunflower on a blue background",
]
STEPS = (4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32)
SHOWN = (4, 8, 16, 32)
GOALS = (30.0, 35.0, 40.0)
REFERENCE_STEPS = 50
SPACINGS = ("trailing", "karras")
PLOTTED = ("ddim", "heun", "dpm2", "lms", "plms", "deis_3", "dpmpp_2m", "unipc", "unipc_3")


def pictures(pipe: edgediff.Pipeline, sampler: str, steps: int, spacing: str | None) -> tuple[np.ndarray, int]:
    """Draw the prompts with seeds 0, 1, ...: uint8 (N, H, W, 3), and the U-Net calls that a picture took."""
    last: Any = None
    for last in pipe.stream(
        PROMPTS, seed=0, sampler=sampler, num_inference_steps=steps, spacing=spacing, output_type="np"
    ):
        pass
    return last.result().images, last.total


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Give the mean PSNR over pictures, in dB."""
    error = np.square(a.astype(np.float64) - b).mean((1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / np.maximum(error, 1e-3))))


def convergence(pipe: edgediff.Pipeline, reference: np.ndarray) -> list[dict[str, Any]]:
    """Give an entry for each sampler and spacing: U-Net calls and PSNR for every number of steps."""
    out = []
    for spacing in SPACINGS:
        for sampler, recipe in SAMPLERS.items():
            if recipe.spacing or plan_for(pipe.bundle, Arguments(sampler=sampler, num_inference_steps=4)).stochastic:
                continue
            entry: dict[str, Any] = {"sampler": sampler, "spacing": spacing, "calls": [], "psnr": []}
            for steps in STEPS:
                made, calls = pictures(pipe, sampler, steps, spacing)
                entry["calls"].append(calls)
                entry["psnr"].append(round(psnr(made, reference), 2))
            for goal in GOALS:
                reached = [c for c, p in zip(entry["calls"], entry["psnr"], strict=True) if p >= goal]
                entry[f"calls_to_{goal:g}_dB"] = reached[0] if reached else None
            out.append(entry)
    return out


def plot(entries: list[dict[str, Any]]) -> None:
    """Draw PSNR over U-Net calls, ``benchmarks/results/samplers.png``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(SPACINGS), figsize=(10, 4.2), sharey=True, layout="constrained")
    for spacing, axis in zip(SPACINGS, axes, strict=True):
        for entry in entries:
            if entry["spacing"] == spacing and entry["sampler"] in PLOTTED:
                axis.plot(entry["calls"], entry["psnr"], marker="o", label=SAMPLERS[entry["sampler"]].label)
        axis.set(title=f"{spacing} spacing", xlabel="U-Net calls", xscale="log", xlim=(3.7, 50))
        axis.set_xticks([4, 6, 8, 12, 16, 24, 32, 48], labels=["4", "6", "8", "12", "16", "24", "32", "48"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"PSNR against {REFERENCE_STEPS}-step DDIM, dB")
    axes[-1].legend(fontsize="small")
    figure.savefig(RESULTS / "samplers.png", dpi=100)


def sheet(pipe: edgediff.Pipeline) -> None:
    """Draw sampler x steps of the first prompt, two samplers a line, ``benchmarks/results/samplers_sheet.png``."""
    size, margin, line = 64, 110, 72
    block = margin + len(SHOWN) * line
    half = -(-len(SAMPLERS) // 2)
    canvas = Image.new("RGB", (2 * block, 20 + half * line), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=12)
    for k, (sampler, recipe) in enumerate(SAMPLERS.items()):
        left, top = k // half * block, 20 + k % half * line
        pen.text((left + 6, top + size // 2 - 8), recipe.label, fill="black", font=font)
        for j, steps in enumerate(SHOWN):
            at = left + margin + j * line
            if top == 20:
                pen.text((at + 4, 3), f"{steps} steps", fill="black", font=font)
            image = pipe(PROMPTS[0], seed=0, sampler=sampler, num_inference_steps=steps).images[0]
            canvas.paste(image.resize((size, size)), (at, top))
    canvas.quantize(256).save(RESULTS / "samplers_sheet.png", optimize=True)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    pipe = edgediff.load().warm()
    reference, _ = pictures(pipe, "ddim", REFERENCE_STEPS, None)
    entries = convergence(pipe, reference)
    for spacing in SPACINGS:
        some = sorted((e for e in entries if e["spacing"] == spacing), key=lambda e: -e["psnr"][STEPS.index(16)])
        rows = [
            [
                SAMPLERS[e["sampler"]].label,
                *(f"{e['psnr'][STEPS.index(n)]:.1f} ({e['calls'][STEPS.index(n)]})" for n in SHOWN),
                *(e[f"calls_to_{goal:g}_dB"] or "-" for goal in GOALS),
            ]
            for e in some
        ]
        head = [f"{spacing}: PSNR (calls)", *(f"{n} steps" for n in SHOWN), *(f"calls to {g:g} dB" for g in GOALS)]
        print(table(head, rows), end="\n\n")
    plot(entries)
    sheet(pipe)
    write(
        "samplers", {"prompts": PROMPTS, "steps": STEPS, "convergence": entries}, ("edgediff", "numpy", "onnxruntime")
    )


if __name__ == "__main__":
    main()
