"""The fused update and the device loop: exact, fast, and beside torch and CuPy.

    python -m benchmarks.kernel                     # the host twin against NumPy
    python -m benchmarks.kernel --check             # on an NVIDIA GPU everything else, in under 5 minutes
    python -m benchmarks.kernel --install --check   # builds ./cpp_ext for the GPU at hand first, without an index:
    CMAKE_ARGS=-DCMAKE_CUDA_ARCHITECTURES=native pip install --no-build-isolation --no-deps ./cpp_ext

Every section on the GPU runs in a process of its own, so that one that fails, crashes or hangs leaves the others alone;
``--section NAME`` runs one of them. Needs cuda-core and torch; CuPy and compute-sanitizer are left out where absent.
Exit code 1 where a check fails; goals of speed are only told.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import table, write
from benchmarks.sections import Report, all_hold, called, checks_and_goals, ended, guarded, slug
from edgediff.sampling.kernels import require_package

from .host_twin import twin
from .installed import install, unusable

PACKAGES = (
    *("edgediff", "edgediff-kernels", "numpy", "torch", "triton", "cupy-cuda13x", "cupy-cuda12x"),
    *("cuda-core", "cuda-bindings"),
)
BUDGET_S = 285  # for everything on the GPU
SECTIONS = {  # name: (module, function, seconds at most)
    "samplers": ("kernel_checks", "samplers", 100),
    "noise": ("kernel_edges", "philox", 60),
    "bad_input": ("kernel_edges", "bad_input", 45),
    "loop": ("kernel_loop", "whole_loop", 60),
    "bandwidth": ("kernel_speed", "bandwidth", 60),
    "rivals": ("kernel_speed", "rivals", 150),
}
TOOLS = ("memcheck", "initcheck", "racecheck", "synccheck")
TOOL_S = 60


def section(name: str, to: Path | None) -> bool:
    """One section, in this process; whether its checks hold."""
    from edgediff.device.cuda import CudaDevice

    findings, gpu = Report(), dict[str, Any]()

    def work() -> None:
        device = CudaDevice()
        gpu.update(_facts(device))
        if name == "sanitized":
            failed = importlib.import_module("benchmarks.kernel_checks").sanitized(device)
            findings.check("the runs under the sanitizer", failed == 0, f"{failed} failed")
        else:
            module, function, _ = SECTIONS[name]
            getattr(importlib.import_module(f"benchmarks.{module}"), function)(findings, device)
        device.close()

    found = guarded(findings, work) | {"gpu": gpu}
    text = json.dumps(found, indent=1, default=str)
    print(_summary({name: found})) if to is None else to.write_text(text, encoding="utf-8")
    return all(check["holds"] for check in findings.checks)


def _facts(device: Any) -> dict[str, Any]:
    from cuda.bindings import driver

    major, minor = device._device.compute_capability
    return {
        "name": device.name,
        "compute_capability": f"{major}.{minor}",
        "multiprocessors": device.multiprocessors,
        "threads_per_multiprocessor": device.threads_per_multiprocessor,
        "driver_cuda": int(driver.cuDriverGetVersion()[1]),
        "kernels": require_package().facts(),
    }


def _child(name: str, to: Path) -> list[str]:
    return [sys.executable, "-X", "faulthandler", "-m", "benchmarks.kernel", "--section", name, "--to", str(to)]


def in_child(name: str, seconds: float) -> dict[str, Any]:
    """One section, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder, "found.json")
        code, output = called(_child(name, to), seconds)
        print(output, end="", flush=True)
        found = json.loads(to.read_text(encoding="utf-8")) if to.exists() else {}
    return ended(found, code, output, seconds)


def sanitizer(findings: Report, until: float) -> None:
    """G: a small run of everything under compute-sanitizer's tools."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        findings.figures["skipped"] = "compute-sanitizer is not on PATH"
        return
    with tempfile.TemporaryDirectory() as folder:
        for tool in TOOLS:
            seconds = min(TOOL_S, until - time.monotonic())
            if seconds < 5:
                findings.figures[tool] = "skipped: no time left"
                continue
            to, start = Path(folder, f"{tool}.json"), time.monotonic()
            code, output = called([program, "--tool", tool, *_child("sanitized", to)], seconds)
            lines = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", output)
            said = lines[-1] if lines else "no summary"
            figures = {"summary": said, "exit_code": code, "seconds": round(time.monotonic() - start, 1)}
            findings.figures[tool] = figures
            refused = next((line for line in output.splitlines() if "not supported" in line.lower()), "")
            if refused and not to.exists():
                figures["skipped"] = refused
            elif code is None:
                figures["skipped"] = f"ran past {seconds:.0f} s"
            else:
                good = bool(re.match(r"0 (errors|hazards)", said)) and to.exists() and code == 0
                findings.check(tool, good, said)
                if not good:
                    figures["output"] = output[-4000:]


def _summary(found: dict[str, Any]) -> str:
    """Checks that failed, goals, times."""
    parts = checks_and_goals(found)
    for part in ("rivals", "bandwidth", "loop", "sanitizer"):
        parts += _figures(part, found.get(part, {}).get("figures", {}))
    if "host_twin" in found:
        figures = [(name, f) for name, f in found["host_twin"]["figures"].items() if isinstance(f, dict)]
        cells = [
            [name, f.get("numpy_us", ""), f.get("twin_us", f.get("us")), f.get("ratio", "")] for name, f in figures
        ]
        parts.append(table(["on the host", "NumPy us", "kernels us", "ratio"], cells))
    return "\n\n".join(parts)


def _figures(part: str, figures: dict[str, Any]) -> list[str]:
    """A section's numbers as tables: one of single values, one for each of its dictionaries of dictionaries."""
    single = [[key, value] for key, value in figures.items() if isinstance(value, (int, float))]
    out = [table([part, "value"], single)] if single else []
    grouped = {key: v for key, v in figures.items() if isinstance(v, dict) and part == "rivals"}
    flat = {key: v for key, v in figures.items() if isinstance(v, dict) and part != "rivals"}
    for title, group in [*grouped.items(), *([(part, flat)] if flat else [])]:
        head = list(dict.fromkeys(key for row in group.values() for key in row if key != "output"))
        out.append(table([title, *head], [[n, *(str(r.get(key, ""))[:60] for key in head)] for n, r in group.items()]))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="run the sections on the GPU as well")
    parser.add_argument("--install", action="store_true", help="build and install ./cpp_ext for this GPU first")
    parser.add_argument("--out", type=Path, help="a folder for a second copy of the JSON")
    parser.add_argument("--section", choices=(*SECTIONS, "sanitized"), help="run this one alone, in this process")
    parser.add_argument("--to", type=Path, help="a file for what --section finds")
    args = parser.parse_args()
    if args.section:
        return 0 if section(args.section, args.to) else 1
    found: dict[str, Any] = {}
    extra: dict[str, Any] = {}  # beside the sections
    if args.install:
        extra["build_s"] = round(install(), 1)
    findings = Report()
    found["host_twin"] = guarded(findings, lambda: twin(findings))
    name, why = "kernel-cpu", unusable()
    if args.check and why:
        extra["skipped"] = f"the sections on the GPU: {why}"
    if args.check and not why:
        name, until = "kernel-gpu", time.monotonic() + BUDGET_S
        for part, (_, _, most) in SECTIONS.items():
            print(f"-- {part}", flush=True)
            found[part] = in_child(part, max(5.0, min(most, until - time.monotonic())))
            gpu = found[part].pop("gpu", {})
            if gpu:
                extra["gpu"], name = gpu, f"kernel-{slug(gpu['name'])}"
            _keep(name, found, extra, args.out)
        sanitized = Report()
        print("-- sanitizer", flush=True)
        found["sanitizer"] = guarded(sanitized, lambda: sanitizer(sanitized, until))
    path = _keep(name, found, extra, args.out)
    print(_summary(found))
    if args.check and why:
        print(f"\nThe sections on the GPU were skipped: {why}")
    print(f"\n{path}")
    return 0 if all_hold(found) else 1


def _keep(name: str, found: dict[str, Any], extra: dict[str, Any], folder: Path | None) -> Path:
    path = write(name, extra | found, PACKAGES)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    return path


if __name__ == "__main__":
    sys.exit(main())
