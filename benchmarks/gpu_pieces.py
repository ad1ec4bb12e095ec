"""To a machine without network: folders and wheels in pieces, onnxruntime-gpu with the code of one GPU alone.

python -m benchmarks.gpu_pieces slim onnxruntime_gpu-....whl FOLDER --arch 90 [--common]
python -m benchmarks.gpu_pieces split PIECES FOLDER...      # PIECES/00/piece, PIECES/01/piece, ...
python -m benchmarks.gpu_pieces join PIECES FOLDER          # pieces in folders, or with their names alone
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from edgediff.errors import ArgumentError, OutputError

MB = 1_000_000
SUMS = "pieces.json"
# In the wheel, of no use here: TensorRT's provider, the library for C, and tools.
DROPPED = (
    "onnxruntime/capi/libonnxruntime_providers_tensorrt.so",
    "onnxruntime/capi/libonnxruntime.so",
    "onnxruntime/transformers/",
    "onnxruntime/quantization/",
    "onnxruntime/tools/",
    "onnxruntime/datasets/",
    "onnxruntime/ThirdPartyNotices.txt",
)
# What nvcc puts into a library: regions of entries, each the machine code for one architecture, or PTX for a later one.
FATBIN = struct.Struct("<IHHQ")  # magic, version, size of this header, size of the entries
ENTRY = struct.Struct("<HHIQIIII")  # kind, version, size of this header, of the code, three more, architecture
MAGIC, HEADER_BYTES, MACHINE_CODE = 0xBA55ED50, 16, 2


def regions(library: bytes | bytearray) -> Iterator[list[tuple[int, int, int, int]]]:
    """Kind, architecture, start and size of every piece of GPU code in a library, by source file."""
    magic, at = struct.pack("<IHH", MAGIC, 1, HEADER_BYTES), 0
    while (at := library.find(magic, at)) >= 0:
        *_, size = FATBIN.unpack_from(library, at)
        entry, at = at + HEADER_BYTES, at + HEADER_BYTES + size
        found = []
        while entry < at:
            kind, _, header, length, *_, architecture = ENTRY.unpack_from(library, entry)
            found.append((kind, architecture, entry + header, length))
            entry += header + length
        yield found


def keep_one(library: bytearray, architecture: int, common: bool = False) -> int:
    """Blank the machine code for other GPUs, which a driver never reads; how many bytes.

    Args:
        library: is changed.
        architecture: to keep.
        common: keep its code only where other GPUs have some of the same source. In ONNX Runtime the rest are grouped
            products of language models; whatever calls one of them fails.

    Raises:
        ArgumentError: there is none for this one.
    """
    found = [[entry for entry in region if entry[0] == MACHINE_CODE] for region in regions(library)]
    here = {own for region in found for _, own, _, _ in region}
    if architecture not in here:
        raise ArgumentError(f"no code for {architecture}; choose from {sorted(here)}")
    blanked = 0
    for region in found:
        alone = {own for _, own, _, _ in region} == {architecture}
        for _, own, start, size in region:
            if own != architecture or (common and alone):
                library[start : start + size] = bytes(size)
                blanked += size
    return blanked


def slim(wheel: Path, folder: Path, architecture: int, common: bool = False) -> Path:
    """onnxruntime-gpu's wheel, smaller, under its own name."""
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / wheel.name
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            if item.filename.startswith(DROPPED):
                continue
            data = old.read(item)
            if item.filename.endswith("libonnxruntime_providers_cuda.so"):
                library = bytearray(data)
                keep_one(library, architecture, common)
                data = bytes(library)
            if item.filename.endswith(".dist-info/RECORD"):
                data = _record(data)
            new.writestr(item, data, zipfile.ZIP_DEFLATED)
    return out


def _record(data: bytes) -> bytes:
    """Without the files that are left out, and without the checksums of those that are changed."""
    lines = [line for line in data.decode().splitlines() if not line.startswith(DROPPED)]
    return "".join(
        (f"{line.split(',')[0]},,\n" if "providers_cuda" in line else f"{line}\n") for line in lines
    ).encode()


def split(pieces: Path, folders: list[Path], megabytes: int) -> int:
    """Pack folders; how many pieces it gives."""
    if pieces.exists():
        raise OutputError(f"{pieces} is there already")
    pieces.mkdir(parents=True)
    sums: dict[str, str] = {}
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w:gz") as tar:
            for folder in folders:
                tar.add(folder, folder.resolve().name)
        whole.seek(0)
        while data := whole.read(megabytes * MB):
            name = f"{len(sums):02d}"
            (pieces / name).mkdir()
            (pieces / name / f"piece.{name}").write_bytes(data)
            sums[f"piece.{name}"] = hashlib.sha256(data).hexdigest()
    (pieces / name / SUMS).write_text(json.dumps(sums), encoding="utf-8")  # with the last
    return len(sums)


def join(pieces: Path, folder: Path) -> None:
    """Unpack what ``split`` packed.

    Raises:
        OutputError: a piece is missing or damaged.
    """
    found = {path.name: path for path in (*pieces.rglob("piece.*"), *pieces.rglob(SUMS))}
    if SUMS not in found:
        raise OutputError(f"{pieces}: the last piece is missing")
    with tempfile.TemporaryFile() as whole:
        for name, digest in json.loads(found[SUMS].read_text(encoding="utf-8")).items():
            data = found[name].read_bytes() if name in found else b""
            if hashlib.sha256(data).hexdigest() != digest:
                raise OutputError(f"{pieces}: {name} is {'damaged' if data else 'missing'}")
            whole.write(data)
        whole.seek(0)
        with tarfile.open(fileobj=whole, mode="r:gz") as tar:
            tar.extractall(folder, filter="data")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("slim", help="a smaller wheel of onnxruntime-gpu")
    one.add_argument("wheel", type=Path)
    one.add_argument("folder", type=Path)
    one.add_argument("--arch", type=int, required=True, help="compute capability without its point: 90 is an H100's")
    one.add_argument(
        "--common", action="store_true", help="without what only this GPU has: products of language models"
    )
    one = commands.add_parser("split", help="pack folders into pieces")
    one.add_argument("pieces", type=Path)
    one.add_argument("folders", type=Path, nargs="+")
    one.add_argument("--mb", type=int, default=60)
    one = commands.add_parser("join", help="unpack pieces")
    one.add_argument("pieces", type=Path)
    one.add_argument("folder", type=Path)
    args = parser.parse_args()
    if args.command == "slim":
        out = slim(args.wheel, args.folder, args.arch, args.common)
        print(f"{out}: {out.stat().st_size / MB:.0f} MB, was {args.wheel.stat().st_size / MB:.0f}")
    elif args.command == "split":
        print(f"{split(args.pieces, args.folders, args.mb)} pieces")
    else:
        join(args.pieces, args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
