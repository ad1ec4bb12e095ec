"""Everything that has to be shown on a GPU, in one run: speed beside diffusers, parity, ONNX Runtime's options, memory.

    python -m benchmarks.gpu --prepare FOLDER           # exports the models (11 GB); needs torch, but no GPU
    python -m benchmarks.gpu --run FOLDER               # where the GPU is, in under 9 minutes; no network
    python -m benchmarks.gpu --go-on --run FOLDER       # what there was no time for
    python -m benchmarks.gpu --prepare FOLDER --shape turbo   # or sdxl; then --run FOLDER measures that shape alone
    python -m benchmarks.gpu --dry-run                  # both at toy width on the kernels' host twin, without a GPU

Stable Diffusion 1.5 at its true size with random weights, fp16, 512 x 512, 20 steps, guidance 7.5, and the built-in
model. Every section runs in a process of its own with a limit of its own, and results are written after each, so that
one that fails or hangs costs the others nothing. Exit code 1 where a check fails, 2 where there is no GPU; goals of
speed are only told.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import REPOSITORY, RESULTS, table, write
from benchmarks.sections import LATE, Report, Runner, Section, all_hold, checks_and_goals, run_here
from edgediff.device.cuda import why_no_device
from edgediff.version import __version__

from .best import FOUND, fastest
from .options import DRY, VARIANTS
from .prepare import FACTS, SHAPES, prepare
from .testbed import Testbed, nvidia_smi

PACKAGES = (
    *("edgediff", "edgediff-kernels", "numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt"),
    *(
        "torch",
        "triton",
        "diffusers",
        "transformers",
        "cuda-core",
        "cuda-bindings",
        "nvidia-cuda-nvrtc",
        "nvidia-cudnn-cu13",
    ),
)
BUDGET_S = 530  # for all sections
LEAST_S, BEST_S = 8, 70  # with less left, a section is not begun; the latter is for what uses the options' figures
OPTION = "option "
HERE = "benchmarks.gpu"
BEFORE = {  # the most wanted first
    "ours": Section(f"{HERE}.speed", "ours", 60),
    "reference": Section(f"{HERE}.pictures", "reference", 150),
    "parity": Section(f"{HERE}.pictures", "parity", 100),
    "compiled": Section(f"{HERE}.rivals", "compiled", 150),
    "eager": Section(f"{HERE}.rivals", "eager", 60),
    "emoji": Section(f"{HERE}.pictures", "emoji", 45),
}
AFTER = {
    "best": Section(f"{HERE}.best", "best", 60),
    "reduced": Section(f"{HERE}.rivals", "reduced", 180),
    "tensorrt": Section(f"{HERE}.best", "tensorrt", 400),
    "autotuned": Section(f"{HERE}.rivals", "autotuned", 300),
}
RIVALS = ("eager", "compiled", "reduced", "autotuned")
SHAPE = {"shape": Section(f"{HERE}.shapes", "shape", 200)}  # of a folder of another shape than SD 1.5's
OPTIONS = {f"{OPTION}{name}": Section(f"{HERE}.options", "option", 40) for name in VARIANTS}
SECTIONS = {**BEFORE, **OPTIONS, **AFTER, **SHAPE}


def section(name: str, folder: Path, dry: bool, to: Path) -> bool:
    """Run a section in this process; tell whether its checks hold."""

    def work(report: Report) -> None:
        testbed = Testbed(folder, dry)
        variant = {"name": name.removeprefix(OPTION)} if name.startswith(OPTION) else {}
        SECTIONS[name].load()(report, testbed, **variant)
        report.device |= testbed.facts()
        testbed.close()

    found = run_here(work)
    to.write_text(json.dumps(found, indent=1, default=str), encoding="utf-8")
    return all_hold({name: found})


def compare(found: dict[str, Any]) -> dict[str, Any]:
    """Hold ours against diffusers', where both have run: speed, memory."""
    report = Report()
    by = {name: found.get(name, {}).get("figures", {}) for name in ("ours", "best", *RIVALS)}
    mine = {"as it comes": by["ours"]}
    if "variant" in by["best"]:
        mine["with the fastest options"] = by["best"][by["best"]["variant"]]
    for name in RIVALS:
        for how, figures in mine.items():
            if "images_per_s" in figures and "images_per_s" in by[name]:
                ratio = figures["images_per_s"] / by[name]["images_per_s"]
                report.figures[f"speed over diffusers {name}, {how}"] = round(ratio, 3)
                if name != "eager":
                    report.goal(f"images/s over diffusers {name}, {how}", ratio, ">= 1")
            if figures.get("peak_mb") and by[name].get("peak_mb"):
                share = figures["peak_mb"] / by[name]["peak_mb"]
                report.figures[f"memory over diffusers {name}, {how}"] = round(share, 3)
    return {"figures": report.figures, "checks": report.checks, "goals": report.goals}


def run(args: argparse.Namespace, folder: Path, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run the sections; what was found so far goes to ``keep`` after each."""
    arguments = ["--run", str(folder.resolve()), *(["--dry-run"] if args.dry_run else [])]
    runner, notes = Runner(HERE, arguments, args.seconds), folder / "notes"
    found: dict[str, Any] = {}
    if (args.go_on or args.only) and (notes / FOUND).exists():  # a part leaves the figures of the others
        found = json.loads((notes / FOUND).read_text(encoding="utf-8"))
    else:
        shutil.rmtree(notes, ignore_errors=True)
        notes.mkdir()
    prepared = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    for name, section in SECTIONS.items():
        if (name in SHAPE) != (prepared.get("shape", "sd15") != "sd15"):
            continue
        bare = name.removeprefix(OPTION)
        done = name in found and found[name]["figures"].get("skipped") != LATE
        if (args.only and name not in args.only and bare not in args.only) or (done and not args.only):
            continue
        if args.dry_run and name.startswith(OPTION) and bare not in DRY:
            continue
        found[name] = runner.run(name, section.seconds, BEST_S if name.startswith(OPTION) else LEAST_S)
        (notes / FOUND).write_text(json.dumps(found), encoding="utf-8")
        keep(found | {"comparison": compare(found)})
    return found | {"comparison": compare(found)}


def commit() -> str:
    """Name the working tree's commit, and whether it holds more; empty outside of git."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except OSError:
        return ""


def summary(found: dict[str, Any]) -> str:
    """Make tables of checks and goals, and one for each kind of section."""
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
    if "shape" in found:
        figures = {n: f for n, f in found["shape"]["figures"].items() if isinstance(f, dict)}
        head = ("size", "steps", "images_per_s", "call_s", "first_s", "peak_mb")
        parts.append(table(["shape", *head], [[n, *(f.get(key, "") for key in head)] for n, f in figures.items()]))
    skipped = [[n, f["figures"]["skipped"]] for n, f in found.items() if "skipped" in f.get("figures", {})]
    if skipped:
        parts.append(table(["skipped", "why"], skipped))
    return "\n\n".join(parts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="write what --run needs, and end")
    parser.add_argument("--shape", choices=SHAPES, default="sd15", help="what --prepare writes")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="what --prepare wrote")
    parser.add_argument("--dry-run", action="store_true", help="toy width, no GPU; writes no results of the repository")
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
        prepare(args.prepare, args.dry_run, shape=args.shape)
        return 0
    if unknown := [name for name in args.only if name not in SECTIONS and name not in VARIANTS]:
        parser.error(f"no section {unknown[0]!r}; choose from {', '.join(SECTIONS)}")
    if not args.run and not args.dry_run:
        parser.error("one of --prepare, --run and --dry-run is needed")
    if args.run and not (args.run / FACTS).is_file():
        parser.error(f"{args.run} has no {FACTS}: write the folder by --prepare")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.run or Path(temporary, "prepared")
        if args.dry_run and not args.run:
            prepare(folder, reduced=True, say=lambda _: None, shape=args.shape)
        return _main(args, folder)


def _main(args: argparse.Namespace, folder: Path) -> int:
    extra: dict[str, Any] = {"dry_run": args.dry_run, "commit": args.commit or commit(), "edgediff": __version__}
    extra["prepared"] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    shape = extra["prepared"].get("shape", "sd15")
    name = "gpu" if shape == "sd15" else f"gpu-{shape}"
    if not args.dry_run and (why := why_no_device()):
        print(f"no GPU to run on: {why}", file=sys.stderr)
        return 2
    extra["gpu"] = (
        None if args.dry_run else {what: nvidia_smi(what) for what in ("name", "driver_version", "memory.total")}
    )
    folders = [target for target in (None if args.dry_run else RESULTS, args.out) if target is not None]

    def keep(found: dict[str, Any]) -> None:
        for target in folders:
            write(name, extra | found, PACKAGES, target)

    found = run(args, folder, keep)
    if args.dry_run:
        print("A dry run: its times and memory mean nothing.\n")
    print(summary(found), *(target / f"{name}.json" for target in folders), sep="\n\n")
    return 0 if all_hold(found) else 1


if __name__ == "__main__":
    sys.exit(main())
