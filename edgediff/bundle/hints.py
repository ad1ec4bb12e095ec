"""A path that holds no bundle: what is there instead, and the one command that goes on."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from ..confined import stays
from ..files import read_regular
from ..looks import Look, look_at
from .bounds import MAX_CONFIG
from .foreign.description import is_foreign
from .manifest import MANIFEST

INDEX = "model_index.json"  # of a diffusers folder
TORCH_WEIGHTS = {".safetensors", ".bin"}
HUB_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")
PARTIAL = re.compile(r"\.(.+)\.partial")  # the folder in which an export grows
MANY = 500  # entries of a folder that are looked at


def no_bundle(root: Path) -> str:
    """Say what ``root`` is, a path without a bundle: ``no bundle at {root}: {what this returns}``."""
    if root.is_dir():
        return _folder(root, MANIFEST)
    look = look_at(root)
    return f"it is {_file(root, look)}" if look else f"it is not a folder{not_here(root)}"


def no_model(root: Path) -> str:
    """Say what ``root`` is, a path without diffusers' index, likewise."""
    if (root / MANIFEST).is_file():
        return f"it is a bundle already; run: edgediff generate PROMPT --model {quote(str(root))}"
    return _folder(root, INDEX) if root.is_dir() else f"it has no {INDEX}{not_here(root)}"


def not_here(path: Path) -> str:
    """Say more of a path that does not exist: a name of the hub, an address, an export that did not finish."""
    if re.match(r"https?:/", path.as_posix()):
        return "; nothing is downloaded: fetch it yourself, and give its path"
    partial = path.parent / f".{path.name}.partial"
    if partial.is_dir():
        return f"; an export to it is unfinished, in {partial}: give the same edgediff export again"
    name = path.as_posix()
    if HUB_NAME.fullmatch(name) and not path.parent.exists():
        local = quote(path.name)
        return (
            "; if a hub has a model of that name, nothing is downloaded here: "
            f"hf download {quote(name)} --local-dir {local} && edgediff export {local} {_bundle_name(path)}"
        )
    return ""


def export_command(path: Path) -> str:
    """Give the command that makes a bundle of a checkpoint."""
    return f"edgediff export {quote(str(path))} {_bundle_name(path)}"


def _bundle_name(path: Path) -> str:
    stem = path.stem if path.suffix in (".safetensors", ".ckpt", ".pt") else path.resolve().name
    return quote(f"{stem or 'my'}-bundle")


def _file(path: Path, look: Look) -> str:
    """Say what a file is, and what to do."""
    if path.name == MANIFEST:
        return f"a bundle's manifest: give its folder, {path.parent}"
    if path.name == INDEX and is_foreign(path.parent):
        return f"the index of a folder of ONNX graphs: give the folder, {path.parent}"
    if path.name == INDEX:
        return f"the index of a diffusers folder; run: {export_command(path.parent)}"
    if look.kind == "checkpoint":
        return f"{look.says}; run: {export_command(path)}"
    if look.kind == "onnx":
        folder = path.parent.parent
        if (folder / INDEX).is_file():
            return f"{look.says} of several: give the folder of them all, {folder}"
        return f"{look.says}; a bundle is made of a whole checkpoint: edgediff export CHECKPOINT OUT"
    return look.says


def _folder(root: Path, lacking: str) -> str:
    """Say what a folder is that lacks this file."""
    missing = f"it has no {lacking}"
    if match := PARTIAL.fullmatch(root.name) or (root.name == "bundle" and PARTIAL.fullmatch(root.parent.name)):
        return (
            f"it is an export that has not finished: give the same edgediff export again; the bundle will be {match[1]}"
        )
    inside = _entries(root)
    folders = [p for p in inside if p.is_dir()]
    if (root / INDEX).is_file():
        kinds = {f.suffix for part in folders for f in _entries(part)}
        if kinds & TORCH_WEIGHTS:
            return f"it is a diffusers folder; run: {export_command(root)}"
        return f"{missing}, and its {INDEX} names parts whose weights are not in it: fetch the whole folder"
    if bundles := [p.name for p in folders if (p / MANIFEST).is_file()]:
        return f"{missing}; there are bundles in it: {', '.join(bundles[:5])}"
    if (root / "snapshots").is_dir():  # a hub's cache
        indexed = [p for p in _entries(root / "snapshots") if (p / INDEX).is_file()]
        if indexed:
            return f"it is a hub's cache of a diffusers folder; run: {export_command(indexed[0])}"
    if kind := _component(root):
        above = root.resolve().parent
        way = f"run: {export_command(above)}" if (above / INDEX).is_file() else f"give the folder with {INDEX}"
        return f"it is one part of a model, a {kind}; {way}"
    for path in inside:
        weights = path.suffix in (".safetensors", ".ckpt", ".pt", ".onnx") and stays(root, path)
        if weights and (look := look_at(path)):
            return f"{missing}; it holds {path.name}, which is {_file(path, look)}"
    return missing if inside else f"{missing}, it is empty"


def _component(root: Path) -> str | None:
    """Name the class that a folder's config.json is of; None where there is none."""
    config = root / "config.json"
    try:
        if not stays(root, config) or not config.is_file():
            return None
        data = json.loads(read_regular(config, MAX_CONFIG))
        name = data.get("_class_name") or (data.get("architectures") or [None])[0]
    except (OSError, ValueError, RecursionError, AttributeError, LookupError, TypeError):
        return None
    return name if isinstance(name, str) and name.isidentifier() else None


def _entries(folder: Path) -> list[Path]:
    """List what a folder holds, at most ``MANY`` of it, by name."""

    def found() -> Iterator[Path]:
        try:
            yield from itertools.islice(folder.iterdir(), MANY)
        except OSError:
            return

    return sorted(found())
