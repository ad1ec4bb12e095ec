"""edgediff beside optimum's own pipeline, on a folder that optimum wrote: from nothing installed to a picture on disk.

    python -m benchmarks.optimum [--divide 2] [--side 256] [--steps 5] [--runs 3] [--work FOLDER] [--no-times]

A Stable Diffusion with seeded random weights, whose U-Net and autoencoder are SD 1.5's with every width divided, is
exported by optimum-onnx in an environment of its own, which is counted nowhere. Each then opens that folder as it is,
on the CPU, and draws the same prompt from the same noise. Per tool: what the installation takes on disk, the time and
the peak memory of a process from its start to a PNG, the time of the import alone, and the time of a picture in a
process that is warm; and how far the two pictures are apart. Rounds go over the tools in turn, and the first, which
fills the file cache, is not counted. Times are worth something on a machine that does nothing else; where it is busy,
``--no-times`` leaves them out. Torch is the one for CPUs, as in benchmarks.rivals.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import REPOSITORY, table, write
from benchmarks.rivals import HEAD, PROMPT, TAIL, TORCH, Rival, install, megabytes, python, run, versions

OPTIMUM = (*TORCH, "optimum-onnx[onnxruntime]==0.1.0", "optimum==2.1.0", "pillow")
SEED, SCALE = 7, 5.0
EXPORT = """
import sys
from optimum.exporters.onnx import main_export
main_export(sys.argv[1], sys.argv[2], task="text-to-image", do_validation=False)
"""
OURS = """
import edgediff
pipe = edgediff.load(model)
def draw():
    return pipe(prompt, num_inference_steps={steps}, guidance_scale={scale}, seed={seed}, width={side},
                height={side}).images[0]
"""
THEIRS = """
import torch
from optimum.onnxruntime import ORTStableDiffusionPipeline
pipe = ORTStableDiffusionPipeline.from_pretrained(model)
pipe.set_progress_bar_config(disable=True)
def draw():
    seed = torch.Generator().manual_seed({seed})
    return pipe(prompt, num_inference_steps={steps}, guidance_scale={scale}, generator=seed, width={side},
                height={side}).images[0]
"""
TOOLS = {
    "edgediff": Rival([f"{REPOSITORY}[cpu]"], "edgediff", OURS),
    "optimum": Rival(OPTIMUM, "optimum.onnxruntime", THEIRS),
}


def make_source(folder: Path, divide: int) -> Path:
    """Write SD 1.5 with every width of U-Net and autoencoder divided, as diffusers saves it."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from edgediff_export.sources.clip_tokenizer import clip_tokenizer
    from edgediff_export.sources.published_configs import DDIM, FAMILIES

    configs = FAMILIES[0].configs

    def narrow(config: dict[str, Any]) -> dict[str, Any]:
        widths = [width // divide for width in config["block_out_channels"]]
        return {**config, "block_out_channels": widths, "norm_num_groups": max(1, 32 // divide)}

    torch.manual_seed(0)
    StableDiffusionPipeline(
        vae=AutoencoderKL(**narrow(configs["vae"])),
        text_encoder=CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
        tokenizer=clip_tokenizer("<|endoftext|>"),
        unet=UNet2DConditionModel(**narrow(configs["unet"])),
        scheduler=DDIMScheduler(**{k: v for k, v in DDIM.items() if not k.startswith("_")}),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def make_folder(work: Path, divide: int) -> Path:
    """The folder that optimum writes, where it is not there yet."""
    out = work / f"onnx-{divide}"
    if not (out / "unet" / "model.onnx").is_file():
        with tempfile.TemporaryDirectory(dir=work) as folder:
            source = make_source(Path(folder) / "source", divide)
            command = [python(work / "optimum"), "-c", EXPORT, str(source), str(out)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return out


def measure(work: Path, folder: Path, runs: int, timed: bool, settings: dict[str, Any]) -> dict[str, Any]:
    """Everything, by tool; no times unless ``timed``."""
    empty = megabytes(work / "empty")
    found: dict[str, dict[str, list[float]]] = {name: {} for name in TOOLS}
    for turn in range(runs + 1):
        for name, tool in TOOLS.items():
            interpreter = python(work / name)
            code = HEAD + tool.program.format(**settings) + TAIL
            program = [interpreter, "-c", code, str(folder), PROMPT, f"{name}.png"]
            seconds, peak, _ = run([*program, "cold"], work)
            values = {"picture_s": seconds, "peak_mb": peak}
            if timed:
                bare, _, _ = run([interpreter, "-c", "pass"], work)
                imported, _, _ = run([interpreter, "-c", f"import {tool.module}"], work)
                _, _, warm = run([*program, "warm"], work)
                values |= {"import_s": imported - bare, "warm_s": float(warm.split()[-1])}
            for what, value in values.items() if turn else ():
                found[name].setdefault(what, []).append(value)
    out: dict[str, Any] = {}
    for name, values_of in found.items():
        middle = {what: round(statistics.median(v), 3) for what, v in values_of.items()}
        out[name] = {
            **{what: middle[what] if timed else None for what in ("picture_s", "import_s", "warm_s")},
            "picture_range_s": [round(f(values_of["picture_s"]), 3) for f in (min, max)] if timed else None,
            "peak_mb": round(middle["peak_mb"], 1),
            "installed_mb": round(megabytes(work / name) - empty, 1),
            "packages": versions(python(work / name)),
        }
    return out


def difference(work: Path) -> int:
    """The largest difference between the two pictures, of 255."""
    from PIL import Image

    both = [np.asarray(Image.open(work / f"{name}.png"), np.int16) for name in TOOLS]
    return int(np.abs(both[0] - both[1]).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--divide", type=int, default=2, metavar="N", help="SD 1.5's widths by this (default: 2)")
    parser.add_argument("--side", type=int, default=256, help="pixels (default: 256)")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--work", type=Path, help="keep environments and folders here, for the next run (3 GB)")
    parser.add_argument("--no-times", action="store_true", help="sizes and memory alone, on a busy machine")
    args = parser.parse_args()
    settings = {"steps": args.steps, "side": args.side, "scale": SCALE, "seed": SEED}
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        install(work / "empty", ())
        for name, tool in TOOLS.items():
            install(work / name, tool.packages)
        folder = make_folder(work, args.divide)
        found = measure(work, folder, args.runs, not args.no_times, settings)
        facts = {"runs": args.runs, "divide": args.divide, **settings, "folder_mb": round(megabytes(folder), 1)}
        results = {**facts, "difference": difference(work), "rivals": found}
    head = ["picture_s", "import_s", "installed_mb", "peak_mb", "warm_s"]
    print(table(["", *head], [[name, *(row[k] for k in head)] for name, row in found.items()]))
    print(f"the pictures differ by {results['difference']} of 255 at most")
    write("optimum", results, ("edgediff",))


if __name__ == "__main__":
    main()
