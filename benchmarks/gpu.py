"""Everything that needs a GPU: SD 1.5 at its true size against diffusers, parity, memory, options, TensorRT.

    python -m benchmarks.gpu --prepare FOLDER [--source DIFFUSERS --bundle FP16_BUNDLE] [--wheel FILE ...]    # on a CPU
    python -m benchmarks.gpu --from FOLDER [--install [DIR]] [--out DIR]                                  # on a GPU
    python -m benchmarks.gpu --dry-run [--from FOLDER]                   # everything but CUDA, at toy width, on a CPU

A machine with a GPU may have no network, so what travels is small: SD 1.5's graphs without weights, which are drawn
there by name, the same for edgediff and for diffusers; the built-in model in fp16; and, with --wheel, wheels for the
Python of that machine (onnxruntime-gpu, less its TensorRT provider; diffusers) in pieces. --install joins those in DIR
(FOLDER/wheel by itself), installs them, and builds ./cpp_ext.
Sections run in processes of their own, results are written after each, and all ends within 9 minutes. Exit code 1
where a check fails; goals of speed are only told.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import gpu_hollow, gpu_wheel
from benchmarks.common import REPOSITORY, RESULTS, environment, table
from benchmarks.gpu_ours import Run
from benchmarks.gpu_sections import SECTIONS, prepared, ratios
from benchmarks.sections import Findings, all_hold, called, checks_and_goals, ended, guarded, slug

PACKAGES = (
    *("edgediff", "edgediff-kernels", "numpy", "onnxruntime-gpu", "onnxruntime", "tensorrt", "torch", "triton"),
    *("diffusers", "transformers", "cuda-core", "cuda-bindings"),
)
BUDGET_S = 520  # for everything on the GPU, building and filling besides
SD15, EMOJI = "sd15", "emoji"


def prepare(folder: Path, source: Path | None, bundle: Path | None, wheels: list[Path], true_size: bool = True) -> None:
    """Make what travels; says how large it is."""
    from edgediff_export.convert import export

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        if source is None:
            source = Path(scratch, "source")
            _model(true_size).save_pretrained(source)
        if bundle is None:
            bundle = export(source, Path(scratch, "bundle"), precision="fp16")
        size = gpu_hollow.hollow(source, bundle, folder / SD15)
    print(f"{folder / SD15}: {size / 1e6:.1f} MB")
    reference = REPOSITORY / "export" / "reference_model" / "pipeline"
    if reference.is_dir():
        gpu_hollow.lean(export(reference, folder / EMOJI, precision="fp16"))
    for wheel in wheels:
        for piece in gpu_wheel.pieces(wheel, folder / "wheel"):
            print(f"{piece}: {piece.stat().st_size / 1e6:.1f} MB")


def _model(true_size: bool) -> Any:
    if true_size:
        from benchmarks.families import true_sd15

        return true_sd15()
    from tests import families

    return families.pipeline("sd15")


def install(pieces: Path) -> float:
    """Install the wheels whose pieces travelled, and ./cpp_ext for this GPU; seconds."""
    from benchmarks.kernel import install as install_kernels

    start = time.perf_counter()
    if pieces.is_dir():
        gpu_wheel.install(pieces)
    install_kernels()
    return time.perf_counter() - start


def section(name: str, run: Run, to: Path) -> bool:
    """One section, in this process; whether its checks hold."""
    findings = Findings()
    found = guarded(findings, lambda: SECTIONS[name][0](run, findings))
    to.write_text(json.dumps(found, indent=1, default=str), encoding="utf-8")
    return all_hold({name: found})


def in_child(name: str, run: Run, seconds: float) -> dict[str, Any]:
    """One section, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder, "found.json")
        order = json.dumps({k: str(v) if isinstance(v, Path) else v for k, v in asdict(run).items()})
        command = [sys.executable, "-X", "faulthandler", "-m", "benchmarks.gpu", "--section", name, order, str(to)]
        code, output = called(command, seconds)
        print(output, end="", flush=True)
        found = json.loads(to.read_text(encoding="utf-8")) if to.exists() else {}
    return ended(found, code, output, seconds)


def gpu() -> dict[str, str]:
    """The GPU's name, driver and memory, as its own tool says."""
    fields = ("name", "driver_version", "memory.total", "compute_cap")
    try:
        said = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(zip(fields, (cell.strip() for cell in said.splitlines()[0].split(",")), strict=False))


def commit() -> str:
    try:
        return subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def measure(run: Run, names: list[str], keep: Any, budget: float) -> dict[str, Any]:
    """Every section, and what ``keep`` is told after each."""
    found: dict[str, Any] = {}
    until = time.monotonic() + budget
    for name in names:
        print(f"-- {name}", flush=True)
        found[name] = in_child(
            name, run, max(5.0, min(SECTIONS[name][1] if not run.dry else 600, until - time.monotonic()))
        )
        keep(found | {"beside diffusers": asdict(ratios(found))})
    return found | {"beside diffusers": asdict(ratios(found))}


def summary(found: dict[str, Any]) -> str:
    parts = checks_and_goals(found)
    for name, part in found.items():
        figures = part.get("figures", {})
        flat = {k: v for k, v in figures.items() if not isinstance(v, dict) and k != "error"}
        if flat:
            parts.append(table([name, "value"], [[k, v] for k, v in flat.items()]))
        if nested := {k: v for k, v in figures.items() if isinstance(v, dict)}:
            head = list(dict.fromkeys(key for row in nested.values() for key in row))
            parts.append(table([name, *head], [[k, *(row.get(key, "") for key in head)] for k, row in nested.items()]))
    return "\n\n".join(parts)


def dry_run(to: Path, folder: Path | None) -> dict[str, Any]:
    """Everything at toy width on a device in host memory; only the figures' meaning is lost."""
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch, "prepared")
        if folder is None:
            prepare(made, None, None, [], true_size=False)
        else:
            shutil.copytree(folder, made)
        gpu_hollow.fill(made / SD15)
        run = Run(made / SD15, made / EMOJI, True, 3, 1, Path(scratch, "plans"))
        return measure(run, list(SECTIONS), lambda found: _write(to, found, {"dry": True}), 1e9)


def _write(path: Path, found: dict[str, Any], extra: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = environment(PACKAGES) | {"commit": commit()} | extra
    path.write_text(json.dumps(facts | {"results": found}, indent=1, default=str) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepare", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--source", type=Path, help="a diffusers folder of Stable Diffusion 1.5 (default: random weights)"
    )
    parser.add_argument("--bundle", type=Path, help="its bundle in fp16 (default: exported here)")
    parser.add_argument("--wheel", type=Path, nargs="+", default=[], help="for the machine with the GPU: see above")
    parser.add_argument("--from", type=Path, dest="folder", metavar="FOLDER", help="what --prepare made")
    parser.add_argument("--install", nargs="?", const="", metavar="DIR", help="of the wheels' pieces; and ./cpp_ext")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="these sections alone")
    parser.add_argument("--out", type=Path, help="a folder for a second copy of the JSON")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--section", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.section:
        name, order, to = args.section
        facts = json.loads(order)
        paths = {k: None if facts[k] is None else Path(facts[k]) for k in ("folder", "emoji", "plans")}
        return 0 if section(name, Run(**(facts | paths)), Path(to)) else 1
    if args.prepare:
        prepare(args.prepare, args.source, args.bundle, args.wheel)
        return 0
    if args.dry_run:
        to = (args.out or Path(tempfile.mkdtemp())) / "gpu-dry.json"
        found = dry_run(to, args.folder)
        print(f"{summary(found)}\n\n{to}: a dry run; its figures mean nothing")
        return 0 if all_hold(found) else 1
    if args.folder is None:
        parser.error("one of --prepare, --from and --dry-run is needed")
    extra: dict[str, Any] = {}
    if args.install is not None:
        extra["install_s"] = round(install(Path(args.install or args.folder / "wheel")), 1)
    found = on_gpu(args.folder, args.only or list(SECTIONS), args.out, extra)
    return 0 if all_hold(found) else 1


def on_gpu(folder: Path, names: list[str], out: Path | None, extra: dict[str, Any]) -> dict[str, Any]:
    """The real run; its JSON goes to benchmarks/results."""
    card = gpu()
    if not card:
        raise SystemExit("nvidia-smi finds no GPU; --dry-run goes through everything without one")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(shutil.copytree(prepared(folder / SD15), Path(scratch, SD15)))
        gpu_hollow.fill(bundle)
        extra |= {"gpu": card, "fill_s": round(time.perf_counter() - start, 1)}
        path = RESULTS / f"gpu-{slug(card['name'])}.json"

        def keep(found: dict[str, Any]) -> None:
            _write(path, found, extra)
            if out is not None:
                out.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, out)

        emoji = folder / EMOJI if (folder / EMOJI).is_dir() else None
        found = measure(Run(bundle, emoji, plans=Path(scratch, "plans")), names, keep, BUDGET_S)
    print(f"{summary(found)}\n\n{path}")
    return found


if __name__ == "__main__":
    sys.exit(main())
