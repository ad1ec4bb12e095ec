"""Bundles whose weights are a recipe: what travels to a machine without network is small, and both sides draw the same.

``hollow`` leaves the files of weights out of a bundle and writes, for every tensor in them, which parameter of torch's
it is and how that is spread; ``fill`` draws the parameters by name and writes the files, ``draw`` gives them to torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgediff import bundle as bundles
from edgediff.engines import WEIGHTS
from edgediff.errors import BundleError

RECIPE, REST = "recipe.json", "rest.safetensors"
SMALL = 1 << 11  # bytes; smaller parameters, and those inside of graphs, travel as they are
Place = tuple[str, int, bool]  # a parameter's name, which piece of it, whether transposed
PARTS = {"text_encoder": ("text_encoder",), "unet": ("unet",), "vae": ("vae_decoder", "vae_encoder")}


def hollow(source: Path, bundle: Path, out: Path) -> int:
    """Write ``out`` from the fp16 bundle of the diffusers folder ``source``; its size in bytes.

    Raises:
        BundleError: a file of weights holds a tensor that is no parameter of the source.
    """
    from safetensors.numpy import save_file

    out.mkdir(parents=True)
    recipe: dict[str, Any] = {"parameters": {}, "files": {}}
    rest: dict[str, NDArray[Any]] = {}
    manifest = json.loads((bundle / bundles.MANIFEST).read_text(encoding="utf-8"))
    manifest.pop("golden", None)
    (out / bundles.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    shutil.copytree(source, out / "source", ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    for component, parts in PARTS.items():
        known: dict[str, Place] = {}
        for name, values in _parameters(source / component):
            full = f"{component}/{name}"
            half = rest[full] = values.astype(np.float16)
            known |= {_digest(values): place for place, values in _views(full, half)}
        for part in parts:
            for file in manifest["parts"].get(part, {}).get("files", []):
                if file["engine"] == WEIGHTS:
                    recipe["files"][file["path"]] = _tensors(bundle, file, known)
        used = {place["parameter"] for file in recipe["files"].values() for place in file["tensors"]}
        for name in [n for n, values in rest.items() if n in used and values.nbytes >= SMALL]:
            values = rest.pop(name)
            facts = {"mean": float(values.mean(dtype=np.float64)), "std": float(values.std(dtype=np.float64))}
            recipe["parameters"][name] = {"shape": list(values.shape)} | facts
    for _, file in bundles.read(bundle).files():
        if file.engine not in (WEIGHTS, "golden"):
            shutil.copy(bundle / file.path, out / file.path)
    save_file(rest, str(out / REST))
    (out / RECIPE).write_text(json.dumps(recipe), encoding="utf-8")
    return sum(f.stat().st_size for f in out.rglob("*") if f.is_file())


def _views(name: str, values: NDArray[np.float16]) -> Iterator[tuple[Place, NDArray[np.float16]]]:
    """The ways in which a graph may hold a parameter: whole, or the halves of a gated linear layer; and transposed."""
    for piece in range(3 if values.ndim <= 2 and len(values) % 2 == 0 else 1):
        for turned in (False, True) if values.ndim == 2 else (False,):
            yield (name, piece, turned), _view(values, piece, turned)


def _view(values: NDArray[np.float16], piece: int, turned: bool) -> NDArray[np.float16]:
    """Piece 0 is the whole, 1 and 2 are the halves of its rows."""
    if piece:
        values = np.split(values, 2)[piece - 1]
    return np.ascontiguousarray(values.T if turned else values)


def _parameters(folder: Path) -> Iterator[tuple[str, NDArray[Any]]]:
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), "np") as opened:
            for name in opened.keys():  # noqa: SIM118
                yield name, opened.get_tensor(name)


def _digest(values: NDArray[Any]) -> str:
    return hashlib.sha256(values.tobytes()).hexdigest()


def _tensors(bundle: Path, file: dict[str, Any], known: dict[str, Place]) -> dict[str, Any]:
    """What lies where in a file of weights."""
    import onnx
    from onnx import helper

    graph = onnx.load(str(bundle / file["path"].removesuffix(".data")), load_external_data=False).graph
    places = []
    with (bundle / file["path"]).open("rb") as f:
        for tensor in graph.initializer:
            facts = {e.key: e.value for e in tensor.external_data}
            if not facts:
                continue
            offset, length = int(facts.get("offset", 0)), int(facts["length"])
            f.seek(offset)
            raw = f.read(length)
            dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            half = np.frombuffer(raw, dtype).astype(np.float16)
            found = known.get(_digest(half))
            if found is None:
                raise BundleError(f"{file['path']}: {tensor.name} {list(tensor.dims)} is no parameter of the source")
            name, piece, transposed = found
            places.append(
                {"offset": offset, "dtype": str(dtype), "parameter": name, "piece": piece, "turned": transposed}
            )
    return {"size": file["size"], "tensors": places}


def lean(bundle: Path) -> None:
    """Leave out of a bundle what drawing a picture does not need."""
    path = bundle / bundles.MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    left = [manifest.pop("golden")["file"], *manifest["parts"].pop("vae_encoder")["files"]]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    for file in left:
        (bundle / file["path"]).unlink()


class Weights:
    """The parameters of a hollow bundle, fp16, each drawn from a seed made of its name."""

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file

        self.recipe = json.loads((folder / RECIPE).read_text(encoding="utf-8"))
        self.rest = load_file(str(folder / REST))

    def draw(self, name: str) -> NDArray[np.float16]:
        """One parameter, by ``component/name``."""
        if name in self.rest:
            return np.asarray(self.rest[name], np.float16)
        facts = self.recipe["parameters"][name]
        values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(facts["shape"], np.float32)
        return (values * np.float32(facts["std"]) + np.float32(facts["mean"])).astype(np.float16)

    def component(self, component: str) -> Iterator[tuple[str, NDArray[np.float16]]]:
        """Every parameter of a component, without its name before it."""
        names = [n for n in (*self.rest, *self.recipe["parameters"]) if n.startswith(component + "/")]
        for name, values in zip(names, self.drawn(names), strict=True):
            yield name.removeprefix(component + "/"), values

    def drawn(self, names: Iterable[str]) -> Iterator[NDArray[np.float16]]:
        """Several parameters, by as many threads as there are cores; few are in memory at a time."""
        names, width = list(names), 2 * (os.cpu_count() or 1)
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(names), width):
                yield from pool.map(self.draw, names[start : start + width])


def fill(folder: Path) -> None:
    """Write the files of weights that ``hollow`` left out, and their checksums."""
    weights, sums = Weights(folder), {}
    for path, facts in weights.recipe["files"].items():
        new = folder / f"{path}.part"
        with new.open("wb") as f:
            f.truncate(facts["size"])
            places = facts["tensors"]
            for place, values in zip(places, weights.drawn(p["parameter"] for p in places), strict=True):
                values = _view(values, place["piece"], place["turned"])
                f.seek(place["offset"])
                f.write(values.astype(place["dtype"]).tobytes())
        sums[path] = bundles.sha256(new)
        new.replace(folder / path)
    manifest = json.loads((folder / bundles.MANIFEST).read_text(encoding="utf-8"))
    for part in manifest["parts"].values():
        for file in part["files"]:
            file["sha256"] = sums.get(file["path"], file["sha256"])
    (folder / bundles.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
