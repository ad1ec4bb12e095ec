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
from benchmarks.gpu_options import VARIANTS, engine
from benchmarks.gpu_pictures import against_reference
from benchmarks.gpu_place import Place
from benchmarks.gpu_speed import around, measure
from benchmarks.sections import Findings, all_hold
from edgediff.pipeline import Pipeline

FOUND = "found.json"  # in the notes: what the sections before gave


def fastest(found: Mapping[str, Any]) -> str | None:
    """The variant whose call takes least, of those whose checks all hold."""
    times = {
        name: found[f"option {name}"]["figures"]["call_ms"]
        for name in VARIANTS
        if "call_ms" in found.get(f"option {name}", {}).get("figures", {}) and all_hold({name: found[f"option {name}"]})
    }
    return min(times, key=lambda name: times[name]) if times else None


def best(findings: Findings, place: Place) -> None:
    """The fastest variant, and in turn with it the one without options."""
    path = place.notes / FOUND
    name = fastest(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None
    if name is None:
        findings.figures["skipped"] = "no variant has run"
        return
    pipes: dict[str, Pipeline] = {}
    rows: dict[str, list[dict[str, Any]]] = {name: [], "none": []}
    for turn in range(2):
        for variant in rows:
            if variant not in pipes:
                pipes[variant] = opened(place, variant)
            rows[variant].append(measure(place, pipes[variant]))
    for variant, measured in rows.items():  # the memory of what is opened second holds the first's
        peak = measured[0]["peak_mb"] if variant == name else None
        faster = min(measured, key=lambda row: float(row["picture_s"]))
        findings.figures[variant] = faster | {"peak_mb": peak, "rounds": len(measured)}
    findings.figures["variant"] = name
    findings.figures["around"] = around(findings, place, pipes[name], name)
    manifest = pipes[name].bundle
    made = pipes[name](**place.request(pipes[name])).images[0]
    floor = float(manifest.parity["pictures"]["floor"])
    findings.figures |= against_reference(findings, place, "the fastest variant's picture", made, floor)
    np.save(place.notes / "best.npy", made)


def opened(place: Place, variant: str) -> Pipeline:
    """A pipeline whose U-Net is opened so."""
    pipe = place.pipeline("sd")
    if variant != "none":
        pipe.set_engine("unet", engine(place, VARIANTS[variant]))
    return pipe.warm()


def tensorrt(findings: Findings, place: Place) -> None:
    """Engine files built here by ``edgediff build``, then everything that ``ours`` measures."""
    if place.dry or importlib.util.find_spec("tensorrt") is None:
        findings.figures["skipped"] = "a dry run has no GPU" if place.dry else "tensorrt is not installed"
        return
    cache = place.folder / "engine-cache"
    start = time.perf_counter()
    command = [sys.executable, "-m", "edgediff", "build", str(place.folder / "sd"), "--engine-cache", str(cache)]
    sizes = place.pipeline("sd").bundle.defaults
    size = f"{sizes.width}x{sizes.height}"
    done = subprocess.run([*command, "--size", size], cwd=REPOSITORY)
    findings.check("edgediff build", done.returncode == 0, f"exit code {done.returncode}")
    findings.figures["builds_s"] = round(time.perf_counter() - start, 1)
    if done.returncode:
        return
    pipe = place.pipeline("sd", "tensorrt", engine_cache=cache).warm()
    findings.figures |= measure(place, pipe)
    findings.figures["around"] = around(findings, place, pipe, "TensorRT")
    made = pipe(**place.request(pipe)).images[0]
    floor = float(pipe.bundle.parity["pictures"]["floor"])
    findings.figures |= against_reference(findings, place, "TensorRT's picture", made, floor)
