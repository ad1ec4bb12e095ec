"""What a run on a GPU needs, made beforehand where torch and the exporter are: models without their weights.

Written to a folder: ``sd`` (Stable Diffusion 1.5 in fp16, hollow), ``sd-fp32`` (the same weights, exactly), ``source``
(diffusers' configs and tokenizer) and ``emoji`` (the built-in model in fp16).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import environment
from benchmarks.gpu_weights import hollow, settle, skeleton

PACKAGES = ("edgediff", "numpy", "onnxruntime", "torch", "diffusers", "transformers", "onnx")
FACTS = "prepared.json"
PRECISIONS = {"sd": "fp16", "sd-fp32": "fp32"}  # fp32 is what the pictures are held against


def prepare(out: Path, reduced: bool, say: Callable[[str], None] = print) -> None:
    """Write ``out``; what an earlier call has finished stays. ``reduced``: at toy width, for a try without a GPU."""
    from edgediff_export import reference_model
    from edgediff_export.convert import export

    work = out.with_name(out.name + ".work")  # 14 GB at true size
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    source = work / "source"
    if not source.exists():
        say("weights")
        _save(reduced, work / "source.part")
        settle(work / "source.part")
        (work / "source.part").replace(source)
    for name, precision in PRECISIONS.items():
        if not (out / name).exists():
            if not (work / name).exists():
                export(source, work / name, precision=precision, name="sd15-random", report=say)
            say(f"{name}: without its weights")
            shutil.rmtree(out / f"{name}.part", ignore_errors=True)
            hollow(source, work / name, out / f"{name}.part")
            (out / f"{name}.part").replace(out / name)
    if not (out / "source").exists():
        skeleton(source, out / "source")
    if not (out / "emoji").exists():
        export(Path(reference_model.__file__).parent / "pipeline", out / "emoji", precision="fp16", report=say)
    facts = environment(PACKAGES) | {"reduced": reduced}
    (out / FACTS).write_text(json.dumps(facts, indent=1), encoding="utf-8")
    shutil.rmtree(work)


def _save(reduced: bool, folder: Path) -> None:
    """A diffusers folder of Stable Diffusion 1.5, random weights."""
    shutil.rmtree(folder, ignore_errors=True)
    if reduced:
        from tests.support.families import make

        make("sd15", folder)
    else:
        from benchmarks.families import true_sd15

        true_sd15().save_pretrained(folder)
