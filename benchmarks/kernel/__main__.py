"""The fused update and the device loop: exact, fast, and beside torch and CuPy.

    python -m benchmarks.kernel                     # the host twin against NumPy
    python -m benchmarks.kernel --check             # on an NVIDIA GPU everything else, in under 5 minutes
    python -m benchmarks.kernel --check --only bandwidth

The kernels are compiled by NVRTC at first use, or come with edgediff-kernels; "kernels" in the JSON says which. The
host twin needs edgediff-kernels, and is left out without it. On a GPU the first sections are the tests of
tests/device/gpu, which ``pytest -m gpu`` runs as well; the others measure. Needs cuda-core, torch and pytest; CuPy and
compute-sanitizer are left out where absent. ``--section NAME`` runs one of those that measure.

Exit code 1 where a check fails; goals of speed are only told. Without a GPU it says so, and the exit code is the host
twin's.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import table, write
from benchmarks.sections import Report, Runner, Section, all_hold, checks_and_goals, run_here, slug
from edgediff.device.cuda import CudaDevice, why_no_device
from edgediff.device.driver import probe
from edgediff.sampling.kernels import find_package

from .correctness import LEAST_S, TESTS, run_tests, sanitize
from .device import facts
from .host_twin import twin

PACKAGES = (
    *("edgediff", "edgediff-kernels", "numpy", "torch", "triton", "cupy-cuda13x", "cupy-cuda12x"),
    *("cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc"),
)
BUDGET_S = 285  # for everything on the GPU
SECTIONS = {
    "torch_noise": Section("benchmarks.kernel.torch_noise", "torch_noise", 30),
    "loop": Section("benchmarks.kernel.loop", "whole_loop", 60),
    "bandwidth": Section("benchmarks.kernel.bandwidth", "bandwidth", 60),
    "rivals": Section("benchmarks.kernel.speed", "rivals", 150),
}
SANITIZER = "sanitizer"
ON_GPU = (*TESTS, *SECTIONS, SANITIZER)


def section(name: str, to: Path | None) -> bool:
    """Run a section in this process; tell whether its checks hold."""

    def work(report: Report) -> None:
        device = CudaDevice()
        report.device |= facts(device)
        SECTIONS[name].load()(report, device)
        device.close()

    found = run_here(work)
    if to is None:
        print(summary({name: found}))
    else:
        to.write_text(json.dumps(found, indent=1, default=str), encoding="utf-8")
    return all_hold({name: found})


def summary(found: dict[str, Any]) -> str:
    """Make tables of the checks that failed, the goals and the times."""
    parts = checks_and_goals(found)
    for name in (*SECTIONS, SANITIZER):
        parts += tables(name, found.get(name, {}).get("figures", {}))
    if "host_twin" in found:
        figures = [(name, f) for name, f in found["host_twin"]["figures"].items() if isinstance(f, dict)]
        cells = [
            [name, f.get("numpy_us", ""), f.get("twin_us", f.get("us")), f.get("ratio", "")] for name, f in figures
        ]
        parts.append(table(["on the host", "NumPy us", "kernels us", "ratio"], cells))
    return "\n\n".join(parts)


def tables(name: str, figures: dict[str, Any]) -> list[str]:
    """Make tables of a section: one of single values, one for each of its dictionaries of dictionaries."""
    single = [[key, value] for key, value in figures.items() if isinstance(value, (int, float))]
    out = [table([name, "value"], single)] if single else []
    grouped = {key: v for key, v in figures.items() if isinstance(v, dict) and name == "rivals"}
    flat = {key: v for key, v in figures.items() if isinstance(v, dict) and name != "rivals"}
    for title, group in [*grouped.items(), *([(name, flat)] if flat else [])]:
        head = list(dict.fromkeys(key for row in group.values() for key in row if key != "output"))
        out.append(table([title, *head], [[n, *(str(r.get(key, ""))[:60] for key in head)] for n, r in group.items()]))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="run the sections on the GPU as well")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        choices=ON_GPU,
        help="these alone of the sections on the GPU; their JSON is a file of its own",
    )
    parser.add_argument("--out", type=Path, help="a folder for a second copy of the JSON")
    parser.add_argument("--section", choices=SECTIONS, help="run this one alone, in this process")
    parser.add_argument("--to", type=Path, help="a file for what --section finds")
    args = parser.parse_args()
    if args.section:
        return 0 if section(args.section, args.to) else 1
    if args.only and not args.check:
        parser.error("--only chooses among what --check runs")
    name, why = "kernel-cpu", why_no_device() if args.check else ""
    if args.only and why:
        print(f"Nothing was run: {why}")
        return 0
    extra: dict[str, Any] = {}  # beside the sections
    found: dict[str, Any] = {}
    if why_not := find_package().why_not:
        extra["host_twin"] = f"skipped: {why_not}"
        print(f"The host twin was skipped: {why_not}")
    elif not args.only:
        found["host_twin"] = run_here(twin)
    if args.check and why:
        extra["skipped"] = f"the sections on the GPU: {why}"
    if args.check and not why:
        name = "-".join(["kernel", slug(probe().name), *args.only])  # apart from what a run of all has found
        on_gpu(found, args.only or ON_GPU, lambda: keep(name, found, extra, args.out))
    path = keep(name, found, extra, args.out)
    print(summary(found))
    if args.check and why:
        print(f"\nThe sections on the GPU were skipped: {why}")
    print(f"\n{path}")
    return 0 if all_hold(found) else 1


def on_gpu(found: dict[str, Any], only: Sequence[str], keep: Any) -> None:
    """Run the tests, the sections that measure, and a few tests under the sanitizer; keep what is found after each."""
    runner = Runner("benchmarks.kernel", [], BUDGET_S)
    for name, (file, most) in TESTS.items():
        if name not in only:
            continue
        print(f"-- {name} ({runner.left:.0f} s left)", flush=True)
        seconds = max(LEAST_S, min(most, runner.left))
        found[name] = run_here(lambda report: run_tests(report, file, seconds))  # noqa: B023
        keep()
    for name, section in SECTIONS.items():
        if name in only:
            found[name] = runner.run(name, section.seconds, LEAST_S)
            keep()
    if SANITIZER not in only:
        return
    print(f"-- sanitizer ({runner.left:.0f} s left)", flush=True)
    found[SANITIZER] = run_here(lambda report: sanitize(report, runner))


def keep(name: str, found: dict[str, Any], extra: dict[str, Any], folder: Path | None) -> Path:
    """Write what was found so far; the GPU's facts stand beside the sections, once."""
    devices = [part["device"] for part in found.values() if part["device"]]
    parts = {key: {k: v for k, v in part.items() if k != "device"} for key, part in found.items()}
    path = write(name, extra | ({"gpu": devices[0]} if devices else {}) | parts, PACKAGES)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    return path


if __name__ == "__main__":
    sys.exit(main())
