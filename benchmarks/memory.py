"""What a call is predicted to take in memory, beside what it takes.

    python -m benchmarks.memory [--bundle NAME=FOLDER@SIDExIMAGES,...]

Each row is a picture of one step in a process of its own, with guidance. What it takes is the process's own memory at
its largest, less what it had with its libraries loaded; pages of mapped files, which the system can drop, are left out.
The bundle of SD 1.5 at its true size is made of a checkpoint of ``benchmarks.true_size``:
``edgediff export FOLDER BUNDLE --precision fp16-weights``.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from typing import Any

from benchmarks.common import RESULTS, table, write
from benchmarks.exports import memory_of

PACKAGES = ("edgediff", "numpy", "onnxruntime")
BUILT_IN = "the built-in model=@64x1,256x1,512x1,512x4,1024x1"
POLL = 0.002  # seconds
CHILD = """
import sys
import edgediff, onnxruntime, tokenizers, PIL.Image
print("loaded", flush=True)
side, images = int(sys.argv[2]), int(sys.argv[3])
pipe = edgediff.load(sys.argv[1] or None, threads=1)
pipe("a red apple", height=side, width=side, num_images_per_prompt=images, num_inference_steps=1, guidance_scale=2.0)
"""


def measured(bundle: str, side: int, images: int) -> int:
    """Bytes that a call took."""
    command = [sys.executable, "-c", CHILD, bundle, str(side), str(images)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "loaded\n"
    before = peak = memory_of(process.pid)[0]
    while process.poll() is None:
        try:
            peak = max(peak, memory_of(process.pid)[0])
        except (OSError, TypeError):  # it has ended
            break
        time.sleep(POLL)
    if process.wait():
        raise SystemExit(f"{command} failed")
    return peak - before


def predicted(bundle: str, side: int, images: int) -> int:
    """Bytes that the same call is predicted to take, as the runtime asks for them."""
    import edgediff
    from edgediff.engines.memory import Demand, estimate
    from edgediff.generation.arguments import Arguments
    from edgediff.generation.request import plan_for

    model = edgediff.load(bundle or None).bundle
    plan = plan_for(model, Arguments("a red apple", num_inference_steps=1, guidance_scale=2.0))
    return estimate(model, Demand(images, side, side, plan.guided, plan.depth)).total()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", action="append", default=[], help="NAME=FOLDER@SIDExIMAGES,...; more models")
    parser.add_argument("--no-write", action="store_true", help="print only")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for text in (BUILT_IN, *args.bundle):
        name, _, rest = text.partition("=")
        folder, _, cases = rest.rpartition("@")
        for case in cases.split(","):
            side, images = map(int, case.split("x"))
            found = {"model": name, "side": side, "images": images}
            found["predicted_mb"] = round(predicted(folder, side, images) / 1e6)
            found["measured_mb"] = round(measured(folder, side, images) / 1e6)
            rows.append(found)
            print(json.dumps(found), flush=True)
    print(table(list(rows[0]), [list(row.values()) for row in rows]))
    if not args.no_write:
        # Where folders lie changes no figure; names have blanks.
        sys.argv[1:] = [shlex.quote(re.sub(r"=.*/", "=", argument)) for argument in sys.argv[1:]]
        write("memory", {"rows": rows}, PACKAGES, RESULTS)


if __name__ == "__main__":
    main()
