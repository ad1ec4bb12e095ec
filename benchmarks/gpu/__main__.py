"""Everything that has to be shown on a GPU, in one run: speed beside diffusers, parity, ONNX Runtime's options, memory.

    python -m benchmarks.gpu --prepare PREPARED           # where torch and the exporter are; no GPU, no weights kept
    python -m benchmarks.gpu --install --run PREPARED     # where the GPU is, in under 9 minutes; no network
    python -m benchmarks.gpu --go-on --run PREPARED       # what there was no time for
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
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import REPOSITORY, RESULTS, table, write
from benchmarks.gpu.best import FOUND, fastest
from benchmarks.gpu.options import DRY, VARIANTS
from benchmarks.gpu.prepare import FACTS, prepare
from benchmarks.gpu.testbed import Testbed, ask
from benchmarks.gpu_weights import fill
from benchmarks.kernel.installed import install, unusable
from benchmarks.sections import Report, all_hold, called, checks_and_goals, ended, guarded
from edgediff.version import __version__

PACKAGES = (
    *("edgediff", "edgediff-kernels", "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt"),
    *("torch", "triton", "diffusers", "transformers", "cuda-core", "cuda-bindings", "nvidia-cudnn-cu13"),
)
BUDGET_S = 530  # for all sections
LEAST_S, BEST_S = 8, 70  # with less left, a section is not begun; the latter is for what uses the options' figures
LATE = "no time left"
OPTION = "option "
BEFORE = {  # name: (module, function, seconds at most); the most wanted first
    "weights": ("gpu", "weights", 90),
    "ours": ("gpu_speed", "ours", 60),
    "reference": ("gpu_pictures", "reference", 150),
    "parity": ("gpu_pictures", "parity", 100),
    "compiled": ("gpu_rivals", "compiled", 150),
    "eager": ("gpu_rivals", "eager", 60),
    "emoji": ("gpu_pictures", "emoji", 45),
}
AFTER = {
    "best": ("gpu_best", "best", 60),
    "reduced": ("gpu_rivals", "reduced", 180),
    "tensorrt": ("gpu_best", "tensorrt", 400),
    "autotuned": ("gpu_rivals", "autotuned", 300),
}
RIVALS = ("eager", "compiled", "reduced", "autotuned")
OPTIONS = {f"{OPTION}{name}": ("gpu_options", "option", 40) for name in VARIANTS}
SECTIONS = {**BEFORE, **OPTIONS, **AFTER}


def weights(findings: Report, place: Testbed) -> None:
    """The weights that did not travel, drawn again."""
    for name in ("sd", "sd-fp32"):
        start = time.perf_counter()
        fill(place.folder / name)
        findings.figures[f"{name}_s"] = round(time.perf_counter() - start, 2)


def section(name: str, folder: Path, dry: bool, to: Path) -> bool:
    """One section, in this process; whether its checks hold."""
    findings, facts = Report(), dict[str, Any]()

    def work() -> None:
        place = Testbed(folder, dry)
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
    findings = Report()
    by = {name: found.get(name, {}).get("figures", {}) for name in ("ours", "best", *RIVALS)}
    mine = {"as it comes": by["ours"]}
    if "variant" in by["best"]:
        mine["with the fastest options"] = by["best"][by["best"]["variant"]]
    for name in RIVALS:
        for how, figures in mine.items():
            if "images_per_s" in figures and "images_per_s" in by[name]:
                ratio = figures["images_per_s"] / by[name]["images_per_s"]
                findings.figures[f"speed over diffusers {name}, {how}"] = round(ratio, 3)
                if name != "eager":
                    findings.goal(f"images/s over diffusers {name}, {how}", ratio, ">= 1")
            if figures.get("peak_mb") and by[name].get("peak_mb"):
                share = figures["peak_mb"] / by[name]["peak_mb"]
                findings.figures[f"memory over diffusers {name}, {how}"] = round(share, 3)
    return {"figures": findings.figures, "checks": findings.checks, "goals": findings.goals}


def run(args: argparse.Namespace, folder: Path, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """All sections; what was found so far goes to ``keep`` after each."""
    until, notes = time.monotonic() + args.seconds, folder / "notes"
    found: dict[str, Any] = {}
    if args.go_on and (notes / FOUND).exists():
        found = json.loads((notes / FOUND).read_text(encoding="utf-8"))
    else:
        shutil.rmtree(notes, ignore_errors=True)
        notes.mkdir()
    for name, (_, _, most) in SECTIONS.items():
        bare, left = name.removeprefix(OPTION), until - time.monotonic()
        done = name in found and found[name]["figures"].get("skipped") != LATE
        if (args.only and name not in args.only and bare not in args.only) or (done and not args.only):
            continue
        if args.dry_run and name.startswith(OPTION) and bare not in DRY:
            continue
        print(f"-- {name} ({left:.0f} s left)", flush=True)
        if left < (BEST_S if name.startswith(OPTION) else LEAST_S):
            found[name] = {"figures": {"skipped": LATE}}
        else:
            found[name] = in_child(name, folder, args.dry_run, min(most, left))
        (notes / FOUND).write_text(json.dumps(found), encoding="utf-8")
        keep(found | {"comparison": compare(found)})
    return found | {"comparison": compare(found)}


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
    rows = {name: found[name]["figures"] for name in ("ours", *RIVALS, "tensorrt")
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
    parser.add_argument("--go-on", action="store_true", help="keep what an earlier run has found, and do the rest")
    parser.add_argument("--only", nargs="+", default=[], metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--seconds", type=float, default=BUDGET_S, help="for all sections")
    parser.add_argument("--commit", default="", help="where .git is not at hand")
    parser.add_argument("--out", type=Path, help="a folder for a copy of the JSON")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.dry_run:  # at toy width threads only wait for each other
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if args.section:
        return 0 if section(args.section, args.run, args.dry_run, args.to) else 1
    if args.prepare:
        prepare(args.prepare, args.dry_run)
        return 0
    if unknown := [name for name in args.only if name not in SECTIONS and name not in VARIANTS]:
        parser.error(f"no section {unknown[0]!r}; choose from {', '.join(SECTIONS)}")
    if not args.run and not args.dry_run:
        parser.error("one of --prepare, --run and --dry-run is needed")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.run or Path(temporary, "prepared")
        if args.dry_run and not args.run:
            prepare(folder, reduced=True, say=lambda _: None)
        return _main(args, folder)


def _main(args: argparse.Namespace, folder: Path) -> int:
    extra: dict[str, Any] = {"dry_run": args.dry_run, "commit": args.commit or commit(), "edgediff": __version__}
    extra["prepared"] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    if args.install:
        extra["kernels_build_s"] = round(install(), 1)
    if not args.dry_run and (why := unusable()):
        print(f"no GPU to run on: {why}", file=sys.stderr)
        return 2
    extra["gpu"] = None if args.dry_run else {what: ask(what) for what in ("name", "driver_version", "memory.total")}
    places = [place for place in (None if args.dry_run else RESULTS, args.out) if place is not None]

    def keep(found: dict[str, Any]) -> None:
        for place in places:
            write("gpu", extra | found, PACKAGES, place)

    found = run(args, folder, keep)
    if args.dry_run:
        print("A dry run: its times and memory mean nothing.\n")
    print(summary(found), *(place / "gpu.json" for place in places), sep="\n\n")
    return 0 if all_hold(found) else 1


if __name__ == "__main__":
    sys.exit(main())
