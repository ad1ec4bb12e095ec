"""Everything that has to be shown on a GPU, in one run: speed beside diffusers, parity, ONNX Runtime's options, memory.

    python -m benchmarks.gpu --prepare PREPARED           # where torch and the exporter are; no GPU, no weights kept
    python -m benchmarks.gpu --install --run PREPARED     # where the GPU is, in under 9 minutes; no network
    python -m benchmarks.gpu --dry-run                    # both at toy width on the kernels' host twin, without a GPU

Stable Diffusion 1.5 at its true size with random weights, fp16, 512 x 512, 20 steps, guidance 7.5, and the built-in
model. Every section runs in a process of its own with a limit of its own, and results are written after each, so that
one that fails or hangs costs the others nothing. ``benchmarks.gpu_pieces`` helps to carry what PREPARED holds, and
onnxruntime-gpu, to a machine without network. Exit code 1 where a check fails; goals of speed are only told.
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import REPOSITORY, RESULTS, table, write
from benchmarks.gpu_best import FOUND, fastest
from benchmarks.gpu_options import DRY, VARIANTS
from benchmarks.gpu_place import Place, ask
from benchmarks.gpu_prepare import FACTS, prepare
from benchmarks.gpu_weights import fill
from benchmarks.kernel import install, unusable
from benchmarks.sections import Findings, all_hold, called, checks_and_goals, ended, guarded

PACKAGES = (
    *("edgediff", "edgediff-kernels", "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt"),
    *("torch", "triton", "diffusers", "transformers", "cuda-core", "cuda-bindings", "nvidia-cudnn-cu13"),
)
BUDGET_S = 530  # for all sections
LEAST_S = 8  # with less left, a section is not begun
OPTION = "option "
BEFORE = {  # name: (module, function, seconds at most); the most wanted first
    "weights": ("gpu", "weights", 90),
    "ours": ("gpu_speed", "ours", 60),
    "reference": ("gpu_pictures", "reference", 150),
    "parity": ("gpu_pictures", "parity", 100),
    "eager": ("gpu_rivals", "eager", 60),
    "compiled": ("gpu_rivals", "compiled", 150),
}
AFTER = {
    "best": ("gpu_best", "best", 60),
    "emoji": ("gpu_pictures", "emoji", 45),
    "tensorrt": ("gpu_best", "tensorrt", 400),
    "autotuned": ("gpu_rivals", "autotuned", 240),
}
OPTIONS = {f"{OPTION}{name}": ("gpu_options", "option", 40) for name in VARIANTS}
SECTIONS = {**BEFORE, **OPTIONS, **AFTER}


def weights(findings: Findings, place: Place) -> None:
    """The weights that did not travel, drawn again."""
    for name in ("sd", "sd-fp32"):
        start = time.perf_counter()
        fill(place.folder / name)
        findings.figures[f"{name}_s"] = round(time.perf_counter() - start, 2)


def section(name: str, folder: Path, dry: bool, to: Path) -> bool:
    """One section, in this process; whether its checks hold."""
    findings, facts = Findings(), dict[str, Any]()

    def work() -> None:
        place = Place(folder, dry)
        module, function, _ = SECTIONS[name]
        do = getattr(importlib.import_module(f"benchmarks.{module}"), function)
        if name.startswith(OPTION):
            do = partial(do, name=name.removeprefix(OPTION))
        do(findings, place)
        facts.update(place.facts())
        place.close()

    found = guarded(findings, work) | {"device": facts}
    to.write_text(json.dumps(found, indent=1, default=str), encoding="utf-8")
    return all_hold({name: found})


def in_child(name: str, folder: Path, dry: bool, seconds: float) -> dict[str, Any]:
    """One section, in a process of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        to = Path(temporary, "found.json")
        command = [sys.executable, "-X", "faulthandler", "-m", "benchmarks.gpu", "--section", name]
        command += ["--run", str(folder.resolve()), "--to", str(to), *(["--dry-run"] if dry else [])]
        code, output = called(command, seconds)
        print(output, end="", flush=True)
        found = json.loads(to.read_text(encoding="utf-8")) if to.exists() else {}
    return ended(found, code, output, seconds)


def compare(found: dict[str, Any]) -> dict[str, Any]:
    """Ours over diffusers', where both have run: speed, memory."""
    findings = Findings()
    by = {name: found.get(name, {}).get("figures", {}) for name in ("ours", "best", "eager", "compiled", "autotuned")}
    mine = {"as it comes": by["ours"]}
    if "variant" in by["best"]:
        mine["with the fastest options"] = by["best"][by["best"]["variant"]]
    for name, goal in (("eager", None), ("compiled", ">= 1"), ("autotuned", None)):
        for how, figures in mine.items():
            if "images_per_s" in figures and "images_per_s" in by[name]:
                ratio = figures["images_per_s"] / by[name]["images_per_s"]
                findings.figures[f"speed over diffusers {name}, {how}"] = round(ratio, 3)
                if goal is not None:
                    findings.goal(f"images/s over diffusers {name}, {how}", ratio, goal)
            if figures.get("peak_mb") and by[name].get("peak_mb"):
                share = figures["peak_mb"] / by[name]["peak_mb"]
                findings.figures[f"memory over diffusers {name}, {how}"] = round(share, 3)
    return {"figures": findings.figures, "checks": findings.checks, "goals": findings.goals}


def run(folder: Path, dry: bool, seconds: float, only: list[str], extra: dict[str, Any], to: Path) -> dict[str, Any]:
    """All sections, written to ``to`` after each."""
    until = time.monotonic() + seconds
    found: dict[str, Any] = {}
    shutil.rmtree(folder / "notes", ignore_errors=True)
    (folder / "notes").mkdir()
    for name, (_, _, most) in SECTIONS.items():
        left = until - time.monotonic()
        if only and name not in only and name.removeprefix(OPTION) not in only:
            continue
        if dry and name.startswith(OPTION) and name.removeprefix(OPTION) not in DRY:
            continue
        print(f"-- {name} ({left:.0f} s left)", flush=True)
        if left < LEAST_S:
            found[name] = {"figures": {"skipped": "no time left"}}
        else:
            found[name] = in_child(name, folder, dry, min(most, left))
        extra["device"] = found[name].pop("device", None) or extra.get("device")
        (folder / "notes" / FOUND).write_text(json.dumps(found), encoding="utf-8")
        found["comparison"] = compare(found)
        write("gpu", extra | found, PACKAGES, to)
    return found


def commit() -> str:
    """Of the working tree, and whether it holds more; empty outside of git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except OSError:
        return ""


def summary(found: dict[str, Any]) -> str:
    """Checks, goals, and a table for each kind of section."""
    parts = checks_and_goals({name: part for name, part in found.items() if part.get("checks") or part.get("goals")})
    head = ("images_per_s", "picture_s", "first_s", "peak_mb", "psnr", "around_unet")
    rows = {name: found[name]["figures"] for name in ("ours", "eager", "compiled", "autotuned", "tensorrt")
            if "images_per_s" in found.get(name, {}).get("figures", {})}  # fmt: skip
    best = found.get("best", {}).get("figures", {})
    if "variant" in best:
        rows[f"ours, {best['variant']}"] = best[best["variant"]] | {"psnr": best.get("psnr")} | best["around"]
    parts.append(table(["pictures", *head], [[n, *(f.get(key, "") for key in head)] for n, f in rows.items()]))
    head = ("call_ms", "host_ms", "returns_at_once", "opens_s", "peak_mb", "relative_error")
    options = {name: found[name]["figures"] for name in OPTIONS if name in found}
    parts.append(table(["U-Net", *head], [[n, *(f.get(key, "") for key in head)] for n, f in options.items()]))
    parts.append(f"fastest: {fastest(found) or 'none'}")
    parts.append(table(["compared", "ratio"], list(found.get("comparison", {}).get("figures", {}).items())))
    skipped = [[n, f["figures"]["skipped"]] for n, f in found.items() if "skipped" in f.get("figures", {})]
    if skipped:
        parts.append(table(["skipped", "why"], skipped))
    return "\n\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="write what --run needs, and end")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="what --prepare wrote")
    parser.add_argument("--dry-run", action="store_true", help="toy width, no GPU; writes no results of the repository")
    parser.add_argument("--install", action="store_true", help="build and install ./cpp_ext for this GPU first")
    parser.add_argument("--only", nargs="+", default=[], metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--seconds", type=float, default=BUDGET_S, help="for all sections")
    parser.add_argument("--commit", default="", help="where .git is not at hand")
    parser.add_argument("--out", type=Path, help="a folder for the JSON, instead of benchmarks/results")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.section:
        return 0 if section(args.section, args.run, args.dry_run, args.to) else 1
    if args.prepare:
        prepare(args.prepare, args.dry_run)
        return 0
    if not args.run and not args.dry_run:
        parser.error("one of --prepare, --run and --dry-run is needed")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.run or Path(temporary, "prepared")
        if args.dry_run and not args.run:
            prepare(folder, reduced=True, say=lambda _: None)
        return _main(args, folder, args.out or (Path(temporary) if args.dry_run else RESULTS))


def _main(args: argparse.Namespace, folder: Path, to: Path) -> int:
    extra: dict[str, Any] = {"dry_run": args.dry_run, "commit": args.commit or commit()}
    extra["prepared"] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    if args.install:
        extra["kernels_build_s"] = round(install(), 1)
    if not args.dry_run and (why := unusable()):
        print(f"no GPU to run on: {why}", file=sys.stderr)
        return 2
    extra["gpu"] = None if args.dry_run else {what: ask(what) for what in ("name", "driver_version", "memory.total")}
    found = run(folder, args.dry_run, args.seconds, args.only, extra, to)
    print(summary(found))
    print(f"\n{to / 'gpu.json'}")
    return 0 if all_hold(found) else 1


if __name__ == "__main__":
    sys.exit(main())
