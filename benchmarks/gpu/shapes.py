"""Pictures a second of other shapes than SD 1.5's: SD-Turbo in one step with the tiny decoder, SDXL at 1024 pixels."""

from __future__ import annotations

import json
import statistics
from typing import Any

import numpy as np

from benchmarks.gpu.prepare import FACTS
from benchmarks.gpu.testbed import Testbed
from benchmarks.sections import Report

REQUESTS: dict[str, dict[str, Any]] = {
    "turbo": {"num_inference_steps": 1, "guidance_scale": 1.0},
    "sdxl": {"guidance_scale": 5.0},
}
BATCHES = {"turbo": (1, 4, 16), "sdxl": (1,)}
GOALS = {"turbo": ("H200", 120)}  # images a second on a GPU of this name


def shape(report: Report, testbed: Testbed) -> None:
    """Measure the prepared shape at its own size, by ONNX Runtime on the device, for each number of pictures a call."""
    name = json.loads((testbed.folder / FACTS).read_text(encoding="utf-8"))["shape"]
    pipe = testbed.pipeline("sd").warm()
    best = 0.0
    for batch in BATCHES[name]:
        more = REQUESTS[name] | {"num_images_per_prompt": batch}
        request = testbed.request(pipe, **(more | {"num_inference_steps": 1} if testbed.dry else more))
        first = testbed.timed(lambda: pipe(**request))  # noqa: B023
        peak = testbed.peak_mb(lambda: pipe(**request))  # noqa: B023
        seconds = statistics.median(testbed.timed(lambda: pipe(**request)) for _ in range(testbed.repeats))  # noqa: B023
        best = max(best, batch / seconds)
        made, again = (pipe(**request).images for _ in range(2))
        report.check(f"the same pictures again, {batch} at once", np.array_equal(made, again), f"{len(made)} pictures")
        report.figures[f"{name}, {batch} at once"] = {
            "size": f"{request['width']}x{request['height']}",
            "steps": request["num_inference_steps"],
            "guidance_scale": request["guidance_scale"],
            "first_s": round(first, 4),
            "call_s": round(seconds, 5),
            "images_per_s": round(batch / seconds, 3),
            "peak_mb": None if peak is None else round(peak),
        }
    report.figures["images_per_s"] = round(best, 3)
    gpu, goal = GOALS.get(name, ("", 0.0))
    if gpu and not testbed.dry and gpu in testbed.device.name:
        report.goal(f"images/s, {name}, {gpu}", best, f">= {goal}")
