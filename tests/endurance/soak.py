"""``python -m tests.endurance.soak``: the built-in model under threads, cancelling, and many requests.

Every picture is held against the one that a quiet pipeline drew; memory is read before and after.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import edgediff

PROMPTS = ("a red apple on a blue background", "a tiger", "(a fish:1.2) BREAK on yellow", "", "a rocket on black " * 12)
SAMPLERS = ("ddim", "dpmpp_2m", "euler_a", "heun", "unipc", "lcm")
WARM = 100  # requests before memory is read first: pools and caches fill
GROWTH = 20e6  # bytes that a thousand requests may add


def request(k: int) -> dict[str, Any]:
    """The arguments of request ``k``: one of a few dozen, so that most come again and again."""
    random = Random(k % 60)
    side = random.choice((32, 64, 96))
    return {
        "prompt": random.choice(PROMPTS),
        "seed": random.randrange(2**32),
        "sampler": random.choice(SAMPLERS),
        "num_inference_steps": random.choice((1, 2, 3)),
        "guidance_scale": random.choice((1.0, 3.0)),
        "num_images_per_prompt": random.choice((1, 2)),
        "width": side,
        "height": random.choice((32, side)),
        "output_type": "np",
    }


def digest(result: edgediff.Result) -> str:
    return hashlib.sha256(result.array.tobytes()).hexdigest()


def expected() -> dict[int, str]:
    """What a quiet pipeline draws."""
    pipe = edgediff.load()
    return {k: digest(pipe(**request(k))) for k in range(60)}


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell its memory by /proc")


def under_threads(count: int, each: int, right: dict[int, str]) -> dict[str, Any]:
    """Several threads, one pipeline."""
    pipe = edgediff.load()
    barrier = threading.Barrier(count)

    def work(thread: int) -> int:
        barrier.wait()
        numbers = range(thread * 7, thread * 7 + each)
        return sum(digest(pipe(**request(k))) != right[k % 60] for k in numbers)

    with ThreadPoolExecutor(count) as pool:
        differ = sum(pool.map(work, range(count)))
    return {"threads": count, "requests": count * each, "differ": differ}


def cancelled(count: int, right: dict[int, str]) -> dict[str, Any]:
    """Streams that are left after any step; the next request is drawn as if nothing had been."""
    pipe = edgediff.load()
    differ = 0
    for k in range(count):
        for step in pipe.stream(**{**request(k), "num_inference_steps": 4}):
            if step.index == k % 3:
                break
        differ += digest(pipe(**request(k))) != right[k % 60]
    return {"cancels": count, "differ": differ}


def soaked(count: int, right: dict[int, str]) -> dict[str, Any]:
    """Many requests to one pipeline."""
    pipe = edgediff.load()
    differ, start, before = 0, time.monotonic(), 0
    for k in range(count):
        if k == WARM:
            before = resident()
        differ += digest(pipe(**request(k))) != right[k % 60]
    growth = resident() - before
    seconds = time.monotonic() - start
    return {"requests": count, "differ": differ, "seconds": round(seconds), "growth_mb": round(growth / 1e6, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.endurance.soak", description=__doc__)
    parser.add_argument("--requests", type=int, default=1300, metavar="N")
    parser.add_argument("--threads", type=int, default=8, metavar="N")
    parser.add_argument("--each", type=int, default=25, metavar="N", help="requests a thread (default: 25)")
    parser.add_argument("--cancels", type=int, default=200, metavar="N")
    parser.add_argument("--out", type=Path, metavar="FILE", help="figures, as JSON")
    args = parser.parse_args()
    right = expected()
    runs: dict[str, Callable[[], dict[str, Any]]] = {
        "threads": lambda: under_threads(args.threads, args.each, right),
        "cancels": lambda: cancelled(args.cancels, right),
        "soak": lambda: soaked(args.requests, right),
    }
    figures = {}
    for name, run in runs.items():
        figures[name] = run()
        print(f"{name}: {figures[name]}", flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    wrong = any(found["differ"] for found in figures.values())
    grown = figures["soak"]["growth_mb"] * 1e6 > GROWTH * max(1.0, args.requests / 1000)
    return 1 if wrong or grown else 0


if __name__ == "__main__":
    sys.exit(main())
