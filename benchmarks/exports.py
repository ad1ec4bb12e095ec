"""What an export takes: minutes, peak memory, disk; SD 1.5 and SDXL at their true sizes, in each precision.

    python -m benchmarks.exports [--sizes sd15 sdxl] [--precisions fp16-weights int8] [--work FOLDER]

The checkpoints are benchmarks.true_size's, in fp16. Each export is a process of its own (``edgediff export``), looked
at four times a second: memory of its own and with the pages of files that it maps, bytes that grow beside the bundle.
Peaks between two looks are missed; the largest resident size comes from the system itself.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, table, write
from benchmarks.true_size import SIZES, write_source
from edgediff_export.precision.precisions import PRECISIONS

PACKAGES = ("edgediff", "numpy", "onnxruntime", "torch", "diffusers", "transformers", "onnx")
GB = 1e9


def size_of(folder: Path) -> int:
    """Count the bytes of a folder's files, some of which may go while they are counted."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


def memory_of(pid: int) -> tuple[int, int]:
    """Give a process' own memory, and that with pages of files, in bytes."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    own, pages, shared = (
        1024 * int(re.search(rf"{name}:\s+(\d+)", text)[1])  # type: ignore[index]
        for name in ("RssAnon", "RssFile", "RssShmem")
    )
    return own + shared, own + shared + pages


def measure(source: Path, out: Path, precision: str) -> dict[str, Any]:
    """Export once, and look at it while it runs."""
    command = [sys.executable, "-m", "edgediff_export", str(source), str(out), "--precision", precision]
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    partial = out.parent / f".{out.name}.partial"
    own = whole = disk = 0
    while process.poll() is None:
        try:
            now = memory_of(process.pid)
        except (OSError, TypeError):  # it has ended
            break
        own, whole = max(own, now[0]), max(whole, now[1])
        disk = max(disk, size_of(partial))
        time.sleep(0.25)
    said = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: {said}")
    parity = json.loads((out / "bundle.json").read_text(encoding="utf-8"))["parity"]
    bundle = size_of(out)
    return {
        "precision": precision,
        "minutes": round((time.monotonic() - began) / 60, 2),
        "own_memory_gb": round(own / GB, 2),
        "memory_with_pages_gb": round(max(whole, peak_of(said)) / GB, 2),
        "bundle_gb": round(bundle / GB, 2),
        "disk_gb": round(max(disk, bundle) / GB, 2),
        "unet_relative": parity["unet"]["relative"],
        "psnr": parity["pictures"]["psnr"],
        "kept_fp32": len(parity["unet"].get("kept_fp32", {})),
    }


def peak_of(said: str) -> int:
    """Read the peak that the command itself told, in bytes."""
    found = re.search(r"peak memory ([\d.]+) GB", said)
    return int(float(found[1]) * GB) if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=list(PRECISIONS))
    parser.add_argument("--work", type=Path, help="a folder whose checkpoints are used again, and that keeps bundles")
    parser.add_argument("--no-write", action="store_true", help="print only")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        for size in args.sizes:
            source = work / size
            if not (source / "model_index.json").is_file():
                write_source(size, source)
            for precision in args.precisions:
                out = work / f"{size}-{precision}"
                shutil.rmtree(out, ignore_errors=True)
                row = {"model": size, "source_gb": round(size_of(source) / GB, 2)}
                rows.append(row | measure(source, out, precision))
                print(rows[-1], flush=True)
                if args.work is None:
                    shutil.rmtree(out)
    print(table(
        ["model", "precision", "minutes", "own memory", "with file pages", "bundle", "disk on the way"],
        [[r["model"], r["precision"], r["minutes"], r["own_memory_gb"], r["memory_with_pages_gb"], r["bundle_gb"],
          r["disk_gb"]] for r in rows],
    ))  # fmt: skip
    if not args.no_write:
        before = RESULTS / "exports.json"
        kept = json.loads(before.read_text(encoding="utf-8"))["results"]["rows"] if before.is_file() else []
        new = {(r["model"], r["precision"]) for r in rows}
        write("exports", {"rows": [r for r in kept if (r["model"], r["precision"]) not in new] + rows}, PACKAGES)


if __name__ == "__main__":
    main()
