"""Pictures a second, time around the U-Net's calls, memory: one bundle by one set of engines."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.gpu.testbed import Testbed
from benchmarks.sections import Report
from edgediff.device.array import DeviceArray
from edgediff.pipeline import Pipeline

AROUND = 0.01  # of the U-Net's time, at most


class Recorded:
    """An engine that remembers its calls, so that they can be made again with nothing between them."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.inputs, self.outputs = engine, engine.inputs, engine.outputs
        self.capture, self.warm_runs = getattr(engine, "capture", "never"), getattr(engine, "warm_runs", 0)
        self.calls: list[Callable[[], Any]] = []

    @property
    def key(self) -> Any:
        """The engine's key, which changes when its memory moves."""
        return getattr(self.engine, "key", None)

    def __call__(self, **inputs: Any) -> Any:
        self.calls.append(lambda: self.engine(**inputs))
        return self.engine(**inputs)

    def enqueue(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: int) -> None:
        self.calls.append(lambda: self.engine.enqueue(inputs, outputs, stream))
        self.engine.enqueue(inputs, outputs, stream)

    def again(self) -> None:
        for call in self.calls:
            call()


def measure(testbed: Testbed, pipe: Pipeline) -> dict[str, Any]:
    """Time a pipeline whose parts are open, and take its peak memory."""
    request = testbed.request(pipe)
    first = testbed.timed(lambda: pipe(**request))
    peak = testbed.peak_mb(lambda: pipe(**request))
    seconds = [testbed.timed(lambda: pipe(**request)) for _ in range(testbed.repeats)]
    return {
        "first_s": round(first, 4),
        "picture_s": round(statistics.median(seconds), 5),
        "picture_s_range": [round(min(seconds), 5), round(max(seconds), 5)],
        "images_per_s": round(1 / statistics.median(seconds), 4),
        "peak_mb": None if peak is None else round(peak),
        "turns": testbed.repeats,
    }


def around(report: Report, testbed: Testbed, pipe: Pipeline, label: str) -> dict[str, Any]:
    """Give what a request takes beyond its engines' calls, which are made again back to back.

    Whole and replayed are timed in turn. "around_unet" is of a request for latents, over the U-Net's time.
    """
    engines = {}
    for part in pipe.bundle.needed:
        engines[part] = Recorded(pipe.engine(part))
        pipe.set_engine(part, engines[part])
    latents, pictures = testbed.request(pipe, output_type="latent"), testbed.request(pipe)
    rows = []
    for turn in range(testbed.repeats + 1):
        row = {}
        for name, request in (("latents_s", latents), ("whole_s", pictures)):
            for engine in engines.values():
                engine.calls.clear()
            row[name] = testbed.timed(lambda: pipe(**request))  # noqa: B023
        for part, engine in engines.items():
            row[part] = testbed.timed(engine.again)
        if turn:
            rows.append(row)
    for part, engine in engines.items():
        pipe.set_engine(part, engine.engine)
    row = {name: statistics.median(r[name] for r in rows) for name in rows[0]}
    unet, texts = row["unet"], sum(row[p] for p in pipe.bundle.text_encoders)
    captured = engines["unet"].capture != "never"
    figures = {name: round(value, 6) for name, value in row.items()} | {
        "unet_calls": len(engines["unet"].calls),
        "around_unet": round((row["latents_s"] - texts - unet) / unet, 5),
        "around_engines": round((row["whole_s"] - sum(row[p] for p in engines)) / row["whole_s"], 5),
    }
    if captured:  # its calls are inside of graphs after the first few
        figures["around_unet"] = figures["around_engines"] = None
    else:
        report.goal(f"time around the U-Net's calls, of theirs, {label}", figures["around_unet"], f"<= {AROUND}")
    return figures


def ours(report: Report, testbed: Testbed) -> None:
    """Measure our pipeline as it comes: ONNX Runtime's CUDA provider with its own options, the loop on the device."""
    start = time.perf_counter()
    pipe = testbed.pipeline("sd").warm()
    report.figures["opens_s"] = round(time.perf_counter() - start, 3)
    report.figures |= measure(testbed, pipe)
    report.figures |= around(report, testbed, pipe, "as it comes")
    np.save(testbed.notes / "ours.npy", pipe(**testbed.request(pipe)).images[0])
