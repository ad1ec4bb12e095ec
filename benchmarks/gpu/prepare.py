"""The models of a run on a GPU, made once where torch and the exporter are.

Written to a folder: ``source`` (Stable Diffusion 1.5 with random weights, as diffusers has it), ``sd`` (its bundle in
fp16), ``sd-fp32`` (with the same weights, exactly) and ``emoji`` (the built-in model in fp16).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import PIPELINE, environment

from .random_weights import redraw

SHAPES = ("sd15", "turbo", "sdxl")  # SD-Turbo has the tiny decoder
TOYS = {"sd15": "sd15", "turbo": "sd-turbo", "sdxl": "sdxl"}  # families of tests/support

PACKAGES = ("edgediff", "numpy", "onnxruntime", "torch", "diffusers", "transformers", "onnx")
FACTS = "prepared.json"
PRECISIONS = {"sd": "fp16", "sd-fp32": "fp32"}  # fp32 is what the pictures are held against


def prepare(out: Path, reduced: bool, say: Callable[[str], None] = print, shape: str = "sd15") -> None:
    """Write ``out``; what an earlier call has finished stays.

    Args:
        reduced: at toy width, for a try without a GPU.
        shape: of ``source``; of others than sd15 there is the fp16 bundle alone.
    """
    from edgediff_export.convert import export

    out.mkdir(parents=True, exist_ok=True)
    source = out / "source"
    if not source.exists():
        say("weights")
        unfinished = out / "source.part"
        shutil.rmtree(unfinished, ignore_errors=True)
        _save(shape, reduced, unfinished)
        redraw(unfinished)
        unfinished.replace(source)
    for name, precision in PRECISIONS.items() if shape == "sd15" else [("sd", "fp16")]:
        if not (out / name).exists():
            export(source, out / name, precision=precision, name=f"{shape}-random", report=say)
    if shape == "sd15" and not (out / "emoji").exists():
        export(PIPELINE, out / "emoji", precision="fp16", report=say)
    facts = environment(PACKAGES) | {"reduced": reduced, "shape": shape}
    (out / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _save(shape: str, reduced: bool, folder: Path) -> None:
    """Save a pipeline with random weights, as diffusers has it."""
    if reduced:
        from tests.support.families import make

        make(TOYS[shape], folder)
    elif shape == "sd15":
        from benchmarks.families import true_sd15

        true_sd15().save_pretrained(folder)
    else:
        from benchmarks.true_size import write_source

        write_source(shape, folder)
