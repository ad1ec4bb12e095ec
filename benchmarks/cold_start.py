"""From process start to a PNG on disk: edgediff beside diffusers with the same weights, in turn, in one run.

    python -m benchmarks.cold_start [--runs 5]

Both make one 64 px picture of the built-in model in 20 DDIM steps at guidance 4, in a new process each time. Also the
time of ``import edgediff`` over a bare ``import numpy``. diffusers is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import PIPELINE, table, write

PROMPT = "a red apple on a blue background"
DIFFUSERS = """
import sys, torch
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], safety_checker=None, torch_dtype=torch.float32)
seed = torch.Generator().manual_seed(7)
image = pipe(sys.argv[2], num_inference_steps=20, guidance_scale=4.0, generator=seed).images[0]
image.save(sys.argv[3])
"""


def seconds(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def summary(values: list[float]) -> dict[str, float]:
    return {k: round(f(values), 3) for k, f in (("min", min), ("median", statistics.median), ("max", max))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        picture = str(Path(folder) / "out.png")
        commands = {
            "edgediff": [sys.executable, "-m", "edgediff", "generate", PROMPT, "--steps", "20", "--seed", "7",
                         "--sampler", "ddim", "--guidance-scale", "4",
                         "-o", picture],
            "import numpy": [sys.executable, "-c", "import numpy"],
            "import edgediff": [sys.executable, "-c", "import edgediff"],
        }  # fmt: skip
        if importlib.util.find_spec("diffusers") and PIPELINE.is_dir():
            commands["diffusers"] = [sys.executable, "-W", "ignore", "-c", DIFFUSERS, str(PIPELINE), PROMPT, picture]
        times: dict[str, list[float]] = {name: [] for name in commands}
        for turn in range(args.runs + 1):
            for name, command in commands.items():
                spent = seconds(command)
                if turn:  # the first turn fills the file cache
                    times[name].append(spent)
    results = {name: summary(values) for name, values in times.items()}
    extra = statistics.median(b - a for a, b in zip(times["import numpy"], times["import edgediff"], strict=True))
    facts: dict[str, object] = {"seconds": results, "import_over_numpy_s": round(extra, 3)}
    print(table(["process start to end", "min s", "median s", "max s"], [[k, *v.values()] for k, v in results.items()]))
    print(f"\nimport edgediff over import numpy: {extra:.3f} s")
    if "diffusers" in times:
        ratios = [d / e for d, e in zip(times["diffusers"], times["edgediff"], strict=True)]
        facts["diffusers_over_edgediff"] = summary(ratios)
        print(f"diffusers / edgediff, pair by pair: {summary(ratios)}")
    write("cold_start", facts, ("edgediff", "numpy", "onnxruntime", "torch", "diffusers", "transformers"))


if __name__ == "__main__":
    main()
