"""Pictures a second, time around the U-Net's calls, memory: one bundle by one set of engines."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.gpu.testbed import Testbed
from benchmarks.sections import Report
from edgediff.device.base import DeviceArray
from edgediff.pipeline import Pipeline

AROUND = 0.01  # of the U-Net's time, at most


class Recorded:
    """An engine that remembers its calls, so that they can be made again with nothing between them."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.inputs, self.outputs = engine, engine.inputs, engine.outputs
        self.capturable = getattr(engine, "capturable", False)
        self.key = getattr(engine, "key", None)
        self.calls: list[Callable[[], Any]] = []

    def __call__(self, **inputs: Any) -> Any:
        self.calls.append(lambda: self.engine(**inputs))
        return self.engine(**inputs)

    def enqueue(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: int) -> None:
        self.calls.append(lambda: self.engine.enqueue(inputs, outputs, stream))
        self.engine.enqueue(inputs, outputs, stream)

    def again(self) -> None:
        for call in self.calls:
            call()


def measure(place: Testbed, pipe: Pipeline) -> dict[str, Any]:
    """Figures of a pipeline whose parts are open."""
    request = place.request(pipe)
    first = place.timed(lambda: pipe(**request))
    peak = place.peak_mb(lambda: pipe(**request))
    seconds = [place.timed(lambda: pipe(**request)) for _ in range(place.repeats)]
    return {
        "first_s": round(first, 4),
        "picture_s": round(statistics.median(seconds), 5),
        "picture_s_range": [round(min(seconds), 5), round(max(seconds), 5)],
        "images_per_s": round(1 / statistics.median(seconds), 4),
        "peak_mb": None if peak is None else round(peak),
        "turns": place.repeats,
    }


def around(findings: Report, place: Testbed, pipe: Pipeline, label: str) -> dict[str, Any]:
    """What a request takes beyond its engines' calls, made again back to back: the text's, the U-Net's, the decoder's.

    Whole and replayed are timed in turn. "around_unet" is of a request for latents, over the U-Net's time.
    """
    engines = {}
    for part in pipe.bundle.needed:
        engines[part] = Recorded(pipe.engine(part))
        pipe.set_engine(part, engines[part])
    latents, pictures = place.request(pipe, output_type="latent"), place.request(pipe)
    rows = []
    for turn in range(place.repeats + 1):
        row = {}
        for name, request in (("latents_s", latents), ("whole_s", pictures)):
            for engine in engines.values():
                engine.calls.clear()
            row[name] = place.timed(lambda: pipe(**request))  # noqa: B023
        for part, engine in engines.items():
            row[part] = place.timed(engine.again)
        if turn:
            rows.append(row)
    for part, engine in engines.items():
        pipe.set_engine(part, engine.engine)
    row = {name: statistics.median(r[name] for r in rows) for name in rows[0]}
    unet, texts = row["unet"], sum(row[p] for p in pipe.bundle.text_encoders)
    capturable = engines["unet"].capturable
    figures = {name: round(value, 6) for name, value in row.items()} | {
        "unet_calls": len(engines["unet"].calls),
        "around_unet": round((row["latents_s"] - texts - unet) / unet, 5),
        "around_engines": round((row["whole_s"] - sum(row[p] for p in engines)) / row["whole_s"], 5),
    }
    if capturable:  # its calls are inside of graphs from the third on
        figures["around_unet"] = figures["around_engines"] = None
    else:
        findings.goal(f"time around the U-Net's calls, of theirs, {label}", figures["around_unet"], f"<= {AROUND}")
    return figures


def ours(findings: Report, place: Testbed) -> None:
    """Our pipeline as it comes: ONNX Runtime's CUDA provider with its own options, the loop on the device."""
    start = time.perf_counter()
    pipe = place.pipeline("sd").warm()
    findings.figures["opens_s"] = round(time.perf_counter() - start, 3)
    findings.figures |= measure(place, pipe)
    findings.figures |= around(findings, place, pipe, "as it comes")
    np.save(place.notes / "ours.npy", pipe(**place.request(pipe)).images[0])
