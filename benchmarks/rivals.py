"""edgediff beside diffusers and OpenVINO GenAI: from nothing installed to a picture on disk.

    python -m benchmarks.rivals [--runs 5] [--work FOLDER] [--no-times]

Each is installed into a fresh environment of its own and draws the same prompt with the same weights: the built-in
model, 64 pixels, 20 DDIM steps at guidance 4, on the CPU. Per rival: what the installation takes on disk, the time and
the peak memory of a process from its start to a PNG, the time of the import alone, and the time of a picture in a
process that is warm. Rounds go over the rivals in turn, and the first, which fills the file cache, is not counted.
Times are worth something on a machine that does nothing else; where it is busy, ``--no-times`` leaves them out.

OpenVINO GenAI reads the model as ``optimum-cli export openvino`` writes it, which is done once, in an environment of
its own, and counted nowhere. Torch is the one for CPUs; where the package index has none, PyTorch's own has:
``PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.common import REPOSITORY, table, write

PIPELINE = REPOSITORY / "export" / "reference_model" / "pipeline"
PROMPT = "a red apple on a blue background"
TORCH = ("torch==2.13.0+cpu", "diffusers==0.39.0", "transformers==4.57.6")
WARM = """
    times = []
    for _ in range(10):
        began = time.perf_counter()
        draw()
        times.append(time.perf_counter() - began)
    print(statistics.median(times))
"""
HEAD = "import statistics, sys, time\nmodel, prompt, picture, warm = sys.argv[1:5]\n"
EDGEDIFF = """
import edgediff
pipe = edgediff.load()
def draw():
    return pipe(prompt, num_inference_steps=20, guidance_scale=4.0, seed=7, sampler="ddim").images[0]
"""
DIFFUSERS = """
import torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None, torch_dtype=torch.float32)
pipe.set_progress_bar_config(disable=True)
def draw():
    seed = torch.Generator().manual_seed(7)
    return pipe(prompt, num_inference_steps=20, guidance_scale=4.0, generator=seed).images[0]
"""
OPENVINO = """
import openvino_genai
from PIL import Image
pipe = openvino_genai.Text2ImagePipeline(model, "CPU")
size = {"width": 64, "height": 64}
def draw():
    out = pipe.generate(prompt, num_inference_steps=20, guidance_scale=4.0, rng_seed=7, **size)
    return Image.fromarray(out.data[0])
"""
TAIL = f"""
draw().save(picture)
if warm == "warm":{WARM}"""


@dataclass(frozen=True)
class Rival:
    """One way to the same picture: what is installed, what is imported, and the program."""

    packages: Sequence[str]
    module: str
    program: str


RIVALS = {
    "edgediff": Rival([f"{REPOSITORY}[cpu]"], "edgediff", EDGEDIFF),
    "diffusers": Rival(TORCH, "diffusers", DIFFUSERS),
    "OpenVINO GenAI": Rival(["openvino-genai", "pillow"], "openvino_genai", OPENVINO),
}
CONVERTER = (*TORCH, "optimum-intel[openvino]")


def python(folder: Path) -> str:
    """The interpreter of an environment."""
    return str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def megabytes(folder: Path) -> float:
    """What the files of a folder take, links not followed."""
    return sum(p.lstat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink()) / 1e6


def install(folder: Path, packages: Sequence[str]) -> None:
    """Make an environment with these packages, where it is not there yet."""
    done = folder / "installed"
    if not done.is_file():
        venv.create(folder, with_pip=True, clear=True)
        if packages:
            subprocess.run([python(folder), "-m", "pip", "install", "--quiet", *packages], check=True)
        done.write_text("\n".join(packages), encoding="utf-8")


def convert(work: Path) -> Path:
    """The built-in model as OpenVINO GenAI reads it."""
    out = work / "openvino-model"
    if not (out / "model_index.json").is_file():
        install(work / "converter", CONVERTER)
        # A torchvision of another build than torch's breaks transformers; nothing here draws on it.
        subprocess.run([python(work / "converter"), "-m", "pip", "uninstall", "-qy", "torchvision"], check=True)
        command = [str(Path(python(work / "converter")).with_name("optimum-cli")), "export", "openvino"]
        options = ["--model", str(PIPELINE), "--task", "text-to-image", "--weight-format", "fp32", str(out)]
        subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return out


def run(command: Sequence[str], folder: Path) -> tuple[float, float, str]:
    """Seconds, peak memory in MB, and what was printed by a process of its own."""
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{command[:3]} ended with {process.returncode}")
        said.seek(0)
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
        return seconds, peak, said.read()


def versions(interpreter: str) -> dict[str, str]:
    """Every package of an environment."""
    listing = subprocess.run(
        [interpreter, "-m", "pip", "list", "--format", "json"], check=True, capture_output=True, text=True
    )
    return {p["name"]: p["version"] for p in json.loads(listing.stdout) if p["name"] not in ("pip", "setuptools")}


def measure(work: Path, runs: int, timed: bool) -> dict[str, Any]:
    """Everything, by rival; no times unless ``timed``."""
    install(work / "empty", ())
    for name, rival in RIVALS.items():
        install(work / name.replace(" ", "-"), rival.packages)
    empty = megabytes(work / "empty")
    sizes = {name: megabytes(work / name.replace(" ", "-")) - empty for name in RIVALS}
    models = {"edgediff": "", "diffusers": str(PIPELINE), "OpenVINO GenAI": str(convert(work))}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in RIVALS}

    def note(name: str, what: str, value: float) -> None:
        found[name].setdefault(what, []).append(value)

    for turn in range(runs + 1):
        for name, rival in RIVALS.items():
            interpreter, folder = python(work / name.replace(" ", "-")), work
            program = [interpreter, "-c", HEAD + rival.program + TAIL, models[name], PROMPT, f"{name}.png"]
            seconds, peak, _ = run([*program, "cold"], folder)
            if turn:
                note(name, "peak_mb", peak)
            if not timed:
                continue
            bare, _, _ = run([interpreter, "-c", "pass"], folder)
            imported, _, _ = run([interpreter, "-c", f"import {rival.module}"], folder)
            _, _, warm = run([*program, "warm"], folder)
            if turn:
                note(name, "picture_s", seconds)
                note(name, "import_s", imported - bare)
                note(name, "warm_s", float(warm.split()[-1]))
    out: dict[str, Any] = {}
    for name, values in found.items():
        middle = {what: statistics.median(v) for what, v in values.items()}
        out[name] = {
            **{what: round(middle[what], 3) if timed else None for what in ("picture_s", "import_s", "warm_s")},
            "picture_range_s": [round(f(values["picture_s"]), 3) for f in (min, max)] if timed else None,
            "peak_mb": round(middle["peak_mb"], 1),
            "installed_mb": round(sizes[name], 1),
            "packages": versions(python(work / name.replace(" ", "-"))),
        }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--work", type=Path, help="keep the environments here, for the next run (3 GB)")
    parser.add_argument("--no-times", action="store_true", help="sizes and memory alone, on a busy machine")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        results = measure(work, args.runs, not args.no_times)
    head = ["picture_s", "import_s", "installed_mb", "peak_mb", "warm_s"]
    print(table(["", *head], [[name, *(row[k] for k in head)] for name, row in results.items()]))
    write("rivals", {"runs": args.runs, "rivals": results}, ("edgediff",))


if __name__ == "__main__":
    main()
