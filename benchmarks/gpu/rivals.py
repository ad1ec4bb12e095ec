"""diffusers with the same weights: in fp16 as it comes, and compiled."""

from __future__ import annotations

import importlib.util
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu.pictures import against_reference
from benchmarks.gpu.testbed import GUIDANCE, PROMPT, SEED, Testbed
from benchmarks.sections import Report

NEEDED = ("torch", "diffusers", "transformers")


def why_not(dry: bool) -> str:
    """Say why diffusers cannot run here; an empty string where it can."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        return f"{', '.join(missing)} not installed"
    if not dry:
        import torch

        if not torch.cuda.is_available():
            return f"torch {torch.__version__} sees no CUDA device"
    return ""


def build(folder: Path, dry: bool) -> Any:
    """Load diffusers' pipeline: fp16 on the GPU, fp32 on the CPU."""
    import diffusers
    import torch

    diffusers.logging.set_verbosity_error()
    dtype = torch.float32 if dry else torch.float16
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(str(folder), torch_dtype=dtype, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to("cpu" if dry else "cuda")


def eager(report: Report, testbed: Testbed) -> None:
    """Measure diffusers, fp16, as it comes."""
    _measure(report, testbed, None)


def compiled(report: Report, testbed: Testbed) -> None:
    """Measure it with U-Net and decoder through torch.compile, as that comes."""
    _measure(report, testbed, "default")


def reduced(report: Report, testbed: Testbed) -> None:
    """Measure the same with channels last and mode reduce-overhead, which captures graphs."""
    _measure(report, testbed, "reduce-overhead")


def autotuned(report: Report, testbed: Testbed) -> None:
    """Measure the same with mode max-autotune, which tries kernels as well."""
    _measure(report, testbed, "max-autotune")


def _measure(report: Report, testbed: Testbed, mode: str | None) -> None:
    if reason := why_not(testbed.dry):
        report.figures["skipped"] = f"not compared: {reason}"
        return
    import torch

    start = time.perf_counter()
    pipe = build(testbed.folder / "source", testbed.dry)
    report.figures |= {"builds_s": round(time.perf_counter() - start, 2), "mode": mode or "eager"}
    manifest = json.loads((testbed.folder / "sd" / "bundle.json").read_text(encoding="utf-8"))
    defaults, floor = manifest["defaults"], float(manifest["parity"]["pictures"]["floor"])
    if mode not in (None, "default"):
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if mode is not None:
        # Without a GPU what is compiled would only take time: the graph is traced, and run as it is.
        how: dict[str, Any] = {"backend": "eager"} if testbed.dry else {} if mode == "default" else {"mode": mode}
        pipe.unet = torch.compile(pipe.unet, fullgraph=True, **how)
        pipe.vae.decode = torch.compile(pipe.vae.decode, fullgraph=True, **how)

    # In fp32, as ours: torch draws other numbers in fp16.
    cells = [defaults[side] // pipe.vae_scale_factor for side in ("height", "width")]
    channels = pipe.vae.config.latent_channels
    noise = torch.randn((1, channels, *cells), generator=torch.Generator().manual_seed(SEED))
    latents = noise.to(pipe.device, torch.float32 if testbed.dry else torch.float16)

    def draw() -> Any:
        return pipe(
            PROMPT,
            latents=latents,
            height=defaults["height"],
            width=defaults["width"],
            num_inference_steps=testbed.steps,
            guidance_scale=GUIDANCE,
            output_type="np",
        ).images[0]

    pictures = []

    def taken() -> float:
        begun = time.perf_counter()
        pictures[:] = [draw()]  # on the host: the GPU has finished
        return time.perf_counter() - begun

    first = taken()
    taken()
    peak = testbed.peak_mb(draw)
    seconds = [taken() for _ in range(testbed.repeats)]
    report.figures |= {
        "first_s": round(first, 3),
        "picture_s": round(statistics.median(seconds), 5),
        "picture_s_range": [round(min(seconds), 5), round(max(seconds), 5)],
        "images_per_s": round(1 / statistics.median(seconds), 4),
        "peak_mb": None if peak is None else round(peak),
        "turns": testbed.repeats,
    }
    picture = np.rint(pictures[0] * 255).clip(0, 255).astype(np.uint8)
    report.figures |= against_reference(report, testbed, "diffusers' picture", picture, floor)
