"""diffusers with the same weights: fp16 as it comes, and compiled. Each in a process of its own."""

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
from benchmarks.gpu_weights import Weights
from benchmarks.sections import Report

NEEDED = ("torch", "diffusers", "transformers")


def why_not(dry: bool) -> str:
    """Why diffusers cannot run here, or an empty string."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        return f"{', '.join(missing)} not installed"
    if not dry:
        import torch

        if not torch.cuda.is_available():
            return f"torch {torch.__version__} sees no CUDA device"
    return ""


def build(folder: Path, dry: bool) -> Any:
    """diffusers' pipeline of the skeleton in ``folder``: fp16 on the GPU, fp32 on the CPU."""
    import diffusers
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizerFast

    weights = Weights(folder)
    classes = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = {}
    device = "cpu" if dry else "cuda"
    diffusers.logging.set_verbosity_error()
    with torch.device(device):
        for name in ("unet", "vae"):
            kind = getattr(diffusers, classes[name][1])
            parts[name] = kind.from_config(kind.load_config(folder / name))
        parts["text_encoder"] = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
    with torch.no_grad():
        for name, module in parts.items():
            module.to(device, torch.float32 if dry else torch.float16).eval()
            own = {_bare(key): value for key, value in module.state_dict().items()}
            missing = {key for key, value in own.items() if value.is_floating_point()}
            for key, values in weights.component(name):
                own[_bare(key)].copy_(torch.from_numpy(values))
                missing.remove(_bare(key))
            if missing:
                raise ValueError(f"{name}: no weights for {sorted(missing)[:3]}")
    scheduler = getattr(diffusers, classes["scheduler"][1])
    pipe = diffusers.StableDiffusionPipeline(
        **parts,
        tokenizer=CLIPTokenizerFast.from_pretrained(folder / "tokenizer"),
        scheduler=scheduler.from_config(scheduler.load_config(folder / "scheduler")),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _bare(name: str) -> str:
    """transformers 5 names CLIP's parameters without this."""
    return name.removeprefix("text_model.")


def eager(findings: Report, place: Testbed) -> None:
    """diffusers, fp16, as it comes."""
    _measure(findings, place, None)


def compiled(findings: Report, place: Testbed) -> None:
    """U-Net and decoder through torch.compile, as it comes."""
    _measure(findings, place, "default")


def reduced(findings: Report, place: Testbed) -> None:
    """The same with channels last and mode reduce-overhead, which captures graphs."""
    _measure(findings, place, "reduce-overhead")


def autotuned(findings: Report, place: Testbed) -> None:
    """The same with mode max-autotune, which tries kernels as well."""
    _measure(findings, place, "max-autotune")


def _measure(findings: Report, place: Testbed, mode: str | None) -> None:
    if reason := why_not(place.dry):
        findings.figures["skipped"] = f"not compared: {reason}"
        return
    import torch

    start = time.perf_counter()
    pipe = build(place.folder / "source", place.dry)
    findings.figures |= {"builds_s": round(time.perf_counter() - start, 2), "mode": mode or "eager"}
    manifest = json.loads((place.folder / "sd" / "bundle.json").read_text(encoding="utf-8"))
    defaults, floor = manifest["defaults"], float(manifest["parity"]["pictures"]["floor"])
    if mode not in (None, "default"):
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if mode is not None:
        # Without a GPU what is compiled would only take time: the graph is traced, and run as it is.
        how: dict[str, Any] = {"backend": "eager"} if place.dry else {} if mode == "default" else {"mode": mode}
        pipe.unet = torch.compile(pipe.unet, fullgraph=True, **how)
        pipe.vae.decode = torch.compile(pipe.vae.decode, fullgraph=True, **how)

    # In fp32, as ours: torch draws other numbers in fp16.
    cells = [defaults[side] // pipe.vae_scale_factor for side in ("height", "width")]
    channels = pipe.vae.config.latent_channels
    noise = torch.randn((1, channels, *cells), generator=torch.Generator().manual_seed(SEED))
    latents = noise.to(pipe.device, torch.float32 if place.dry else torch.float16)

    def draw() -> Any:
        return pipe(
            PROMPT,
            latents=latents,
            height=defaults["height"],
            width=defaults["width"],
            num_inference_steps=place.steps,
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
    peak = place.peak_mb(draw)
    seconds = [taken() for _ in range(place.repeats)]
    findings.figures |= {
        "first_s": round(first, 3),
        "picture_s": round(statistics.median(seconds), 5),
        "picture_s_range": [round(min(seconds), 5), round(max(seconds), 5)],
        "images_per_s": round(1 / statistics.median(seconds), 4),
        "peak_mb": None if peak is None else round(peak),
        "turns": place.repeats,
    }
    picture = np.rint(pictures[0] * 255).clip(0, 255).astype(np.uint8)
    findings.figures |= against_reference(findings, place, "diffusers' picture", picture, floor)
