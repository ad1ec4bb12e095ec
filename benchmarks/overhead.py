"""How much of a call is not engine: the time of whole calls over the summed time of their engine calls.

python -m benchmarks.overhead [--runs 20] [--model BUNDLE]
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import edgediff
from benchmarks.common import table, write


class Timed:
    """An engine that adds up the time of its calls."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.inputs, self.outputs = engine, engine.inputs, engine.outputs
        self.seconds, self.calls = 0.0, 0

    def __call__(self, **inputs: Any) -> Any:
        start = time.perf_counter()
        out = self.engine(**inputs)
        self.seconds += time.perf_counter() - start
        self.calls += 1
        return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--model")
    args = parser.parse_args()
    pipe = edgediff.load(args.model).warm()
    timed = {part: Timed(pipe.engine(part)) for part in pipe.bundle.needed}
    for part, engine in timed.items():
        pipe.set_engine(part, engine)
    ratios, totals = [], []
    for run in range(args.runs + 2):
        before = sum(t.seconds for t in timed.values())
        start = time.perf_counter()
        pipe("a red apple on a blue background", num_inference_steps=20, seed=run)
        total = time.perf_counter() - start
        if run >= 2:
            totals.append(total)
            ratios.append(total / (sum(t.seconds for t in timed.values()) - before))
    unet = timed["unet"]
    results = {
        "total_s": round(statistics.median(totals), 4),
        "unet_call_ms": round(1000 * unet.seconds / unet.calls, 3),
        "total_over_engines": {"min": round(min(ratios), 4), "median": round(statistics.median(ratios), 4),
                               "max": round(max(ratios), 4)},
    }  # fmt: skip
    print(table(["measure", "value"], list(results.items())))
    write("overhead", results, ("edgediff", "numpy", "onnxruntime"))


if __name__ == "__main__":
    main()
