"""Carries models and wheels in small pieces to a machine without network, for a run of ``benchmarks.gpu`` there.

    python .ci/carry.py hollow PREPARED OUT             # what --prepare wrote, without the weights: 11 GB become MBs
    python .ci/carry.py fill OUT                        # there: draw the weights again, the same to the bit
    python .ci/carry.py wheels FOLDER --python 3.12     # what the GPU part needs, without CUDA's large libraries
    python .ci/carry.py slim WHEEL FOLDER --arch 90     # onnxruntime-gpu with the machine code of one GPU alone
    python .ci/carry.py split PIECES FOLDER...          # PIECES/00/piece.00, PIECES/01/piece.01, ...
    python .ci/carry.py join PIECES FOLDER              # pieces in any folders below PIECES

The GPU machine's own libraries serve ONNX Runtime: cublas, cudnn, cudart and curand are not carried. Install what is
carried into the environment whose ``nvidia`` folder holds them, and no ``onnxruntime`` beside ``onnxruntime-gpu``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.gpu.random_weights import RECIPE, draw
from edgediff.bundle.manifest import WEIGHTS, sha256
from edgediff.bundle.reading import read_bundle

MB = 1_000_000
LEFT_OUT, CONSTANTS, SUMS = "left_out.json", "constants.safetensors", "pieces.json"
LARGEST_CONSTANT = 1 << 20  # bytes; masks and tables of a graph, which are no parameters, are carried as they are
SOURCE, BUNDLES = "source", ("sd", "sd-fp32")  # of a prepared folder
# Wheels that a machine without network needs for the GPU part; onnxruntime-gpu comes apart, to be made slim.
WHEELS = (
    *("cuda-core==1.2.2", "cuda-bindings==13.5.0", "cuda-pathfinder", "nvidia-cuda-nvrtc>=13,<14"),
    *("tokenizers", "pytest", "iniconfig", "pluggy", "packaging", "flatbuffers", "protobuf"),
)
GLIBC = (28, 27, 26, 24, 17)  # of manylinux tags
# In onnxruntime-gpu's wheel, of no use there: TensorRT's provider, the library for C, and tools.
DROPPED = (
    "onnxruntime/capi/libonnxruntime_providers_tensorrt.so",
    "onnxruntime/capi/libonnxruntime.so",
    *(f"onnxruntime/{name}" for name in ("transformers/", "quantization/", "tools/", "datasets/")),
    "onnxruntime/ThirdPartyNotices.txt",
)
# What nvcc puts into a library: regions of entries, each the machine code for one architecture, or PTX for a later one.
FATBIN = struct.Struct("<IHHQ")  # magic, version, size of this header, size of the entries
ENTRY = struct.Struct("<HHIQIIII")  # kind, version, size of this header, of the code, three more, architecture
MAGIC, HEADER_BYTES, MACHINE_CODE = 0xBA55ED50, 16, 2

Half = NDArray[np.float16]


def hollow(prepared: Path, out: Path) -> None:
    """Copy a prepared folder without its weights, and note of each file how to draw it again."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    recipe = json.loads((prepared / SOURCE / RECIPE).read_text(encoding="utf-8"))
    forms = {
        hashlib.sha256(values.tobytes()).hexdigest(): {"parameter": name, **form}
        for name, facts in recipe.items()
        for form, values in forms_of(draw(name, **facts))
    }
    constants: dict[str, NDArray[Any]] = {}
    left_out: dict[str, Any] = {}
    for path in sorted((prepared / SOURCE).glob("*/*.safetensors")):
        with safe_open(str(path), "np") as opened:
            names = {name: f"{path.parent.name}/{name}" for name in opened.keys()}  # noqa: SIM118
            constants |= {full: opened.get_tensor(n) for n, full in names.items() if full not in recipe}
            half = {opened.get_slice(name).get_dtype() for name in names} == {"F16"}
        left_out[path.relative_to(prepared).as_posix()] = {"parameters": names, "half": half}
    for bundle in (name for name in BUNDLES if (prepared / name).exists()):
        for _, file in read_bundle(prepared / bundle).files():
            if file.engine == WEIGHTS:
                tensors = find_tensors(prepared / bundle / file.path, forms, constants)
                left_out[f"{bundle}/{file.path}"] = {"tensors": tensors, "size": file.size}
    for name, how in left_out.items():
        how["sha256"] = sha256(prepared / name)

    def ignored(folder: str, names: list[str]) -> list[str]:
        return [n for n in names if (Path(folder, n).relative_to(prepared)).as_posix() in left_out or n == "notes"]

    shutil.copytree(prepared, out, ignore=ignored)
    (out / LEFT_OUT).write_text(json.dumps(left_out), encoding="utf-8")
    save_file(constants, str(out / CONSTANTS))


def forms_of(values: Half) -> Iterator[tuple[dict[str, Any], Half]]:
    """Give the ways in which a graph may hold a parameter: whole or half its rows, transposed or not."""
    for half in range(3 if values.ndim in (1, 2) and len(values) % 2 == 0 else 1):
        for turned in (False, True) if values.ndim == 2 else (False,):
            yield {"half": half, "turned": turned}, formed(values, half, turned)


def formed(values: Half, half: int, turned: bool) -> Half:
    """Give a parameter in one of these ways; half 0 is the whole."""
    if half:
        values = np.split(values, 2)[half - 1]
    return np.ascontiguousarray(values.T if turned else values)


def find_tensors(path: Path, forms: dict[str, Any], constants: dict[str, NDArray[Any]]) -> list[dict[str, Any]]:
    """Find out what lies where in a file of weights; what is no parameter is added to ``constants``."""
    import onnx
    from onnx import helper

    graph = onnx.load(str(path).removesuffix(".data"), load_external_data=False).graph
    found = []
    with path.open("rb") as f:
        for tensor in graph.initializer:
            facts = {entry.key: entry.value for entry in tensor.external_data}
            if not facts:
                continue
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            offset = int(facts.get("offset", 0))
            f.seek(offset)
            stored = np.frombuffer(f.read(int(facts["length"])), dtype)
            half = stored.astype(np.float16) if stored.dtype.kind == "f" else None
            form = None if half is None else forms.get(hashlib.sha256(half.tobytes()).hexdigest())
            if form is None or not np.array_equal(stored, half):
                if stored.nbytes > LARGEST_CONSTANT:
                    raise SystemExit(f"{path.name}: {tensor.name} {list(tensor.dims)} is no parameter of the source")
                form = {"parameter": f"constant/{path.parent.name}/{path.name}/{tensor.name}"}
                constants[form["parameter"]] = stored
            found.append({"offset": offset, "dtype": str(dtype), **form})
    return found


def fill(folder: Path) -> None:
    """Write the files that ``hollow`` left out; each must be what it was (another NumPy may draw other numbers)."""
    from safetensors.numpy import load_file, save_file

    recipe = json.loads((folder / SOURCE / RECIPE).read_text(encoding="utf-8"))
    constants = load_file(str(folder / CONSTANTS))

    def parameter(name: str) -> NDArray[Any]:
        return draw(name, **recipe[name]) if name in recipe else constants[name]

    for name, how in json.loads((folder / LEFT_OUT).read_text(encoding="utf-8")).items():
        path, new = folder / name, folder / f"{name}.part"
        if path.exists() and sha256(path) == how["sha256"]:
            continue  # drawn by an earlier call
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            if "parameters" in how:
                drawn = pool.map(parameter, how["parameters"].values())
                tensors = {n: v.astype(np.float32) if v.dtype == np.float16 and not how["half"] else v
                           for n, v in zip(how["parameters"], drawn, strict=True)}  # fmt: skip
                save_file(tensors, str(new), {"format": "pt"})
            else:
                with new.open("wb") as f:
                    f.truncate(how["size"])

                    def write(tensor: dict[str, Any], number: int = f.fileno()) -> None:
                        values = parameter(tensor["parameter"])
                        if "half" in tensor:
                            values = formed(values, tensor["half"], tensor["turned"])
                        write_at(number, memoryview(values.astype(tensor["dtype"]).reshape(-1).view(np.uint8)), tensor)

                    list(pool.map(write, how["tensors"]))
        if sha256(new) != how["sha256"]:
            raise SystemExit(f"{name} was drawn with other bytes than it had")
        new.replace(path)


def write_at(number: int, values: memoryview, tensor: dict[str, Any]) -> None:
    """Write all of it: ``os.pwrite`` takes 2 GB at most, and may write less."""
    done = 0
    while done < len(values):
        done += os.pwrite(number, values[done:], tensor["offset"] + done)


def wheels(folder: Path, python: str, more: list[str]) -> None:
    """Fetch wheels for a Linux x86-64 machine with this Python. What they depend on is in the list already."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command += ["--python-version", python, "--implementation", "cp", "--platform", "manylinux2014_x86_64"]
    for minor in GLIBC:
        command += ["--platform", f"manylinux_2_{minor}_x86_64"]
    subprocess.run([*command, *WHEELS, *more], check=True)
    for path in sorted(folder.glob("*.whl")):
        print(f"{path.stat().st_size / MB:8.2f} MB  {path.name}")


def slim(wheel: Path, folder: Path, architecture: int, common: bool) -> Path:
    """Write onnxruntime-gpu's wheel, smaller, under its own name."""
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / wheel.name
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename.startswith(DROPPED):
                continue
            if item.filename.endswith("libonnxruntime_providers_cuda.so"):
                data = keep_one(bytearray(data), architecture, common)
            if item.filename.endswith(".dist-info/RECORD"):  # without checksums of what is changed
                lines = [line for line in data.decode().splitlines() if not line.startswith(DROPPED)]
                data = "".join(f"{n.split(',')[0]},,\n" if "providers_cuda" in n else f"{n}\n" for n in lines).encode()
            new.writestr(item, data, zipfile.ZIP_DEFLATED)
    return out


def keep_one(library: bytearray, architecture: int, common: bool) -> bytes:
    """Blank the machine code for other GPUs, which a driver never reads.

    With ``common`` the code of sources that are compiled for this GPU alone goes too. In ONNX Runtime those are grouped
    products of language models; whatever calls one of them fails.
    """
    magic, at, kept = struct.pack("<IHH", MAGIC, 1, HEADER_BYTES), 0, 0
    while (at := library.find(magic, at)) >= 0:
        *_, size = FATBIN.unpack_from(library, at)
        entry, at, code = at + HEADER_BYTES, at + HEADER_BYTES + size, []
        while entry < at:
            kind, _, header, length, *_, own = ENTRY.unpack_from(library, entry)
            code += [(own, entry + header, length)] if kind == MACHINE_CODE else []
            entry += header + length
        alone = {own for own, *_ in code} == {architecture}
        for own, start, length in code:
            kept += own == architecture
            if own != architecture or (common and alone):
                library[start : start + length] = bytes(length)
    if not kept:
        raise SystemExit(f"no code for {architecture}")
    return bytes(library)


def split(pieces: Path, folders: list[Path], megabytes: int) -> int:
    """Pack folders; give the number of pieces."""
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
    """Unpack what ``split`` packed; a piece that is missing or damaged is named."""
    found = {path.name: path for path in (*pieces.rglob("piece.*"), *pieces.rglob(SUMS))}
    if SUMS not in found:
        raise SystemExit(f"{pieces}: the last piece is missing")
    with tempfile.TemporaryFile() as whole:
        for name, digest in json.loads(found[SUMS].read_text(encoding="utf-8")).items():
            data = found[name].read_bytes() if name in found else b""
            if hashlib.sha256(data).hexdigest() != digest:
                raise SystemExit(f"{pieces}: {name} is {'damaged' if data else 'missing'}")
            whole.write(data)
        whole.seek(0)
        with tarfile.open(fileobj=whole, mode="r:gz") as tar:
            tar.extractall(folder, filter="data")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    takes = {
        "hollow": ("prepared", "out"),
        "fill": ("folder",),
        "slim": ("wheel", "folder"),
        "join": ("pieces", "folder"),
    }
    made = {name: commands.add_parser(name) for name in (*takes, "split", "wheels")}
    for name, arguments in takes.items():
        for argument in arguments:
            made[name].add_argument(argument, type=Path)
    made["slim"].add_argument("--arch", type=int, required=True, help="compute capability without its point")
    made["slim"].add_argument("--common", action="store_true", help="without what is compiled for this GPU alone")
    made["wheels"].add_argument("folder", type=Path)
    made["wheels"].add_argument("more", nargs="*", help="such as onnxruntime-gpu==1.31.1")
    made["wheels"].add_argument("--python", default="3.12")
    made["split"].add_argument("pieces", type=Path)
    made["split"].add_argument("folders", type=Path, nargs="+")
    made["split"].add_argument("--mb", type=int, default=60)
    args = parser.parse_args()
    if args.command == "hollow":
        hollow(args.prepared, args.out)
    elif args.command == "wheels":
        wheels(args.folder, args.python, args.more)
    elif args.command == "fill":
        fill(args.folder)
    elif args.command == "slim":
        out = slim(args.wheel, args.folder, args.arch, args.common)
        print(f"{out}: {out.stat().st_size / MB:.0f} MB, was {args.wheel.stat().st_size / MB:.0f}")
    elif args.command == "split":
        print(f"{split(args.pieces, args.folders, args.mb)} pieces")
    else:
        join(args.pieces, args.folder)


if __name__ == "__main__":
    main()
