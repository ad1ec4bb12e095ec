"""Whole pictures with the U-Net opened the fastest way that the sections of options found, and with TensorRT."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.common import REPOSITORY
from benchmarks.gpu.options import VARIANTS, engine
from benchmarks.gpu.pictures import against_reference
from benchmarks.gpu.speed import around, measure
from benchmarks.gpu.testbed import Testbed
from benchmarks.sections import Report, all_hold
from edgediff.pipeline import Pipeline

FOUND = "found.json"  # in the notes: what the sections before gave


def fastest(found: Mapping[str, Any]) -> str | None:
    """Name the variant whose call takes least, of those whose checks all hold."""
    times = {
        name: found[f"option {name}"]["figures"]["call_ms"]
        for name in VARIANTS
        if "call_ms" in found.get(f"option {name}", {}).get("figures", {}) and all_hold({name: found[f"option {name}"]})
    }
    return min(times, key=lambda name: times[name]) if times else None


def best(report: Report, testbed: Testbed) -> None:
    """Measure the fastest variant, and in turn with it the one without options."""
    path = testbed.notes / FOUND
    name = fastest(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
    if name is None:
        report.figures["skipped"] = "no variant has run"
        return
    pipes: dict[str, Pipeline] = {}
    rows: dict[str, list[dict[str, Any]]] = {name: [], "none": []}
    for turn in range(2):
        for variant in rows:
            if variant not in pipes:
                pipes[variant] = opened(testbed, variant)
            rows[variant].append(measure(testbed, pipes[variant]))
    for variant, measured in rows.items():  # the memory of what is opened second holds the first's
        peak = measured[0]["peak_mb"] if variant == name else None
        faster = min(measured, key=lambda row: float(row["picture_s"]))
        report.figures[variant] = faster | {"peak_mb": peak, "rounds": len(measured)}
    report.figures["variant"] = name
    report.figures["around"] = around(report, testbed, pipes[name], name)
    manifest = pipes[name].bundle
    made = pipes[name](**testbed.request(pipes[name])).images[0]
    floor = float(manifest.parity["pictures"]["floor"])
    report.figures |= against_reference(report, testbed, "the fastest variant's picture", made, floor)
    np.save(testbed.notes / "best.npy", made)


def opened(testbed: Testbed, variant: str) -> Pipeline:
    """Open a pipeline, and its U-Net so."""
    pipe = testbed.pipeline("sd")
    if variant != "none":
        pipe.set_engine("unet", engine(testbed, VARIANTS[variant]))
    return pipe.warm()


def tensorrt(report: Report, testbed: Testbed) -> None:
    """Build engine files by ``edgediff build``, then measure what ``ours`` measures."""
    if testbed.dry or importlib.util.find_spec("tensorrt") is None:
        report.figures["skipped"] = "a dry run has no GPU" if testbed.dry else "tensorrt is not installed"
        return
    cache = testbed.folder / "engine-cache"
    start = time.perf_counter()
    command = [sys.executable, "-m", "edgediff", "build", str(testbed.folder / "sd"), "--engine-cache", str(cache)]
    sizes = testbed.pipeline("sd").bundle.defaults
    size = f"{sizes.width}x{sizes.height}"
    done = subprocess.run([*command, "--size", size], cwd=REPOSITORY)
    report.check("edgediff build", done.returncode == 0, f"exit code {done.returncode}")
    report.figures["builds_s"] = round(time.perf_counter() - start, 1)
    if done.returncode:
        return
    pipe = testbed.pipeline("sd", "tensorrt", engine_cache=cache).warm()
    report.figures |= measure(testbed, pipe)
    report.figures["around"] = around(report, testbed, pipe, "TensorRT")
    made = pipe(**testbed.request(pipe)).images[0]
    floor = float(pipe.bundle.parity["pictures"]["floor"])
    report.figures |= against_reference(report, testbed, "TensorRT's picture", made, floor)
