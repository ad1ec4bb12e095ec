"""Random weights that travel as a recipe: a bundle of 2 GB becomes a few MB, and again the same bytes elsewhere.

``settle`` gives a diffusers folder weights drawn by name, ``hollow`` leaves them out of what is exported of it,
``fill`` draws them again and holds the files against the manifest's checksums, and ``Weights`` gives them to torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgediff.bundle.manifest import MANIFEST, WEIGHTS, sha256
from edgediff.bundle.reading import read_bundle
from edgediff.errors import BundleError

RECIPE, REST, PLACES = "weights.json", "rest.safetensors", "places.json"
SMALL = 1 << 10  # bytes in fp16; smaller parameters travel as they are
CONSTANT = 1 << 20  # bytes; up to it, what is no parameter travels as it is: masks, tables
Half = NDArray[np.float16]


@dataclass(frozen=True)
class Place:
    """Where a tensor of an ONNX file comes from: a parameter, its rows (0: all, 1 and 2: a half), transposed or not."""

    parameter: str
    half: int
    turned: bool

    def of(self, values: Half) -> Half:
        """The tensor's values, of the parameter's."""
        if self.half:
            values = np.split(values, 2)[self.half - 1]
        return np.ascontiguousarray(values.T if self.turned else values)


def drawn(name: str, shape: list[int], mean: float, width: float) -> Half:
    """A parameter's values, even about ``mean``. Every operation is exact or rounded once, so that machines agree."""
    values = np.random.default_rng(zlib.crc32(name.encode())).random(shape, np.float32)
    values -= np.float32(0.5)
    values *= np.float32(width)
    values += np.float32(mean)
    return values.astype(np.float16)


def settle(source: Path) -> None:
    """Draw the weights of a diffusers folder anew, each tensor with its own mean and deviation, all fit for fp16."""
    from safetensors.numpy import load_file, save_file

    recipe: dict[str, Any] = {}
    for file in _files(source):
        tensors = load_file(str(file))
        for name, values in tensors.items():
            if values.dtype != np.float32:
                continue
            full = f"{file.parent.name}/{name}"
            if 2 * values.size >= SMALL:
                recipe[full] = {
                    "shape": list(values.shape),
                    "mean": float(np.float32(values.mean(dtype=np.float64))) if np.ptp(values) == 0 else 0.0,
                    "width": float(np.float32(values.std(dtype=np.float64) * 12**0.5)),
                }
                tensors[name] = drawn(full, **recipe[full]).astype(np.float32)
            else:
                tensors[name] = values.astype(np.float16).astype(np.float32)
        save_file(tensors, str(file), {"format": "pt"})
    (source / RECIPE).write_text(json.dumps(recipe), encoding="utf-8")


def hollow(source: Path, bundle: Path, out: Path) -> None:
    """``bundle``, exported of the settled ``source``, without its files of weights; beside them what ``fill`` needs.

    Raises:
        BundleError: a file of weights holds a large tensor that is no parameter of the source.
    """
    from safetensors.numpy import save_file

    recipe = json.loads((source / RECIPE).read_text(encoding="utf-8"))
    known: dict[str, Place] = {}
    rest: dict[str, NDArray[Any]] = {}
    for name, values in _parameters(source):
        if name not in recipe:
            rest[name] = values
        for place in _places(name, values):
            known.setdefault(_digest(place.of(values)), place)
    out.mkdir(parents=True)
    places, wanted = {}, set[str]()
    for part, file in read_bundle(bundle).files():
        if file.engine == WEIGHTS:
            places[file.path] = _tensors(bundle / file.path, known, rest)
            wanted |= {place["parameter"] for place in places[file.path]}
        else:
            shutil.copy(bundle / file.path, out / file.path)
    shutil.copy(bundle / MANIFEST, out)
    shutil.copy(source / RECIPE, out)
    (out / PLACES).write_text(json.dumps(places), encoding="utf-8")
    save_file({name: rest[name] for name in sorted(wanted & set(rest))}, str(out / REST))


def skeleton(source: Path, out: Path) -> None:
    """The settled ``source`` without its weights: configs, tokenizer, recipe, and the parameters outside of it."""
    from safetensors.numpy import save_file

    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    recipe = json.loads((source / RECIPE).read_text(encoding="utf-8"))
    save_file({name: v for name, v in _parameters(source) if name not in recipe}, str(out / REST))


def _files(source: Path) -> list[Path]:
    return sorted(source.glob("*/*.safetensors"))


def _parameters(source: Path) -> Iterator[tuple[str, Half]]:
    """``component/name`` and values of every parameter of floats."""
    from safetensors import safe_open

    for file in _files(source):
        with safe_open(str(file), "np") as opened:
            for name in opened.keys():  # noqa: SIM118
                values = opened.get_tensor(name)
                if values.dtype == np.float32:
                    yield f"{file.parent.name}/{name}", values.astype(np.float16)


def _places(name: str, values: Half) -> Iterator[Place]:
    """The ways in which a graph may hold a parameter: whole, or as the halves of a gated linear layer; transposed."""
    for half in range(3 if values.ndim in (1, 2) and len(values) % 2 == 0 else 1):
        for turned in (False, True) if values.ndim == 2 else (False,):
            yield Place(name, half, turned)


def _digest(values: Half) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()


def _tensors(path: Path, known: dict[str, Place], rest: dict[str, NDArray[Any]]) -> list[dict[str, Any]]:
    """What lies where in a file of weights; constants are added to ``rest``."""
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
            f.seek(int(facts.get("offset", 0)))
            stored = np.frombuffer(f.read(int(facts["length"])), dtype)
            place = known.get(_digest(stored.astype(np.float16))) if stored.dtype.kind == "f" else None
            if place is None or not np.array_equal(stored, stored.astype(np.float16)):
                if stored.nbytes > CONSTANT:
                    raise BundleError(f"{path.name}: {tensor.name} {list(tensor.dims)} is no parameter of the source")
                place = Place(f"constant/{path.name}/{tensor.name}", 0, False)
                rest[place.parameter] = stored
            found.append({"offset": int(facts.get("offset", 0)), "dtype": str(dtype), **place.__dict__})
    return found


class Weights:
    """The parameters of a folder that ``hollow`` or ``skeleton`` wrote, by ``component/name``, fp16."""

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file

        self.recipe = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
        self.rest = load_file(str(folder / REST))

    def __getitem__(self, name: str) -> Half:
        return drawn(name, **self.recipe[name]) if name in self.recipe else self.rest[name]

    def component(self, component: str) -> Iterator[tuple[str, Half]]:
        """Every parameter of a component, by its name there; drawn by several threads, in order."""
        names = [name for name in (*self.recipe, *self.rest) if name.startswith(component + "/")]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for name, values in zip(names, pool.map(self.__getitem__, names), strict=True):
                yield name.removeprefix(component + "/"), values


def fill(folder: Path) -> None:
    """Write the files of weights that ``hollow`` left out.

    Raises:
        BundleError: a file is not what was exported (another NumPy may draw other numbers).
    """
    weights = Weights(folder)
    files = {file.path: file for _, file in read_bundle(folder).files()}
    for name, tensors in json.loads((folder / PLACES).read_text(encoding="utf-8")).items():
        if (folder / name).exists() and sha256(folder / name) == files[name].sha256:
            continue  # drawn by an earlier run
        new = folder / f"{name}.part"
        with new.open("wb") as f, ThreadPoolExecutor(os.cpu_count()) as pool:
            f.truncate(files[name].size)
            number = f.fileno()

            def write(tensor: dict[str, Any], number: int = number) -> None:
                place = Place(tensor["parameter"], tensor["half"], tensor["turned"])
                values = place.of(weights[place.parameter]).astype(tensor["dtype"])
                _write_at(number, memoryview(values.reshape(-1).view(np.uint8)), tensor["offset"])

            list(pool.map(write, tensors))
        if (found := sha256(new)) != files[name].sha256:
            raise BundleError(f"{name} was drawn with sha256 {found[:12]}, exported with {files[name].sha256[:12]}")
        new.replace(folder / name)


def _write_at(number: int, values: memoryview, offset: int) -> None:
    """``os.pwrite`` writes 2 GB at most, and may write less."""
    while len(values):
        written = os.pwrite(number, values, offset)
        values, offset = values[written:], offset + written
