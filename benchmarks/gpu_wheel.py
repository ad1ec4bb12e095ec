"""Large wheels in pieces, without what is not needed: for machines that can be reached by small copies alone."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LEFT_OUT = ("tensorrt", "nv_tensorrt", "openvino")  # providers' libraries
PIECE = 56 << 20  # bytes


def pieces(wheel: Path, out: Path) -> list[Path]:
    """Write the wheel's pieces, packed as small as they get."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        small = Path(scratch, wheel.name)
        with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(small, "w", zipfile.ZIP_LZMA) as packed:
            for name in whole.namelist():
                if not any(f"providers_{provider}" in name for provider in LEFT_OUT):
                    packed.writestr(name, whole.read(name))
        data = small.read_bytes()
    made = []
    for k, start in enumerate(range(0, len(data), PIECE)):
        made.append(out / f"{wheel.name}.{k:02}")
        made[-1].write_bytes(data[start : start + PIECE])
    return made


def join(folder: Path, out: Path) -> list[Path]:
    """The wheels again; ``SystemExit`` where there are no pieces, or one is missing."""
    groups: dict[str, list[Path]] = {}
    for piece in sorted(folder.glob("*.whl.[0-9][0-9]")):
        groups.setdefault(piece.stem, []).append(piece)
    if not groups:
        raise SystemExit(f"{folder} holds no pieces of wheels")
    for name, found in groups.items():
        if [int(p.suffix[1:]) for p in found] != list(range(len(found))):
            raise SystemExit(f"{folder} holds the pieces {[p.name for p in found]}; one is missing")
        with (out / name).open("wb") as f:
            for piece in found:
                f.write(piece.read_bytes())
        if not zipfile.is_zipfile(out / name):
            raise SystemExit(f"the pieces of {name} in {folder} make no wheel; the last is missing")
    return [out / name for name in groups]


def install(folder: Path) -> None:
    """Install the wheels whose pieces these are, onnxruntime-gpu in place of onnxruntime; nothing is fetched."""
    with tempfile.TemporaryDirectory() as scratch:
        wheels = join(folder, Path(scratch))
        pip = [sys.executable, "-m", "pip"]
        if any(wheel.name.startswith("onnxruntime_gpu") for wheel in wheels):
            subprocess.run([*pip, "uninstall", "--yes", "onnxruntime", "onnxruntime-gpu"], check=True)
        subprocess.run([*pip, "install", "--no-deps", "--no-index", *map(str, wheels)], check=True)
