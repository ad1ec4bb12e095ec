"""Bundles with damage in the manifest, a graph, the tokenizer, stored tensors, or with links; signed again or not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import edgediff

from .children import Report, judged
from .kinds import dice
from .raw import battered, reheaded, rewired
from .shown import command
from .values import damage, written

DATA = Path(__file__).parents[1] / "data"
SECRET = "secret.bin"  # lies above every case; nothing may read it
KEPT = b"secret " * 500
SHARES = (25, 35, 18, 8, 8, 6)  # of a hundred cases
LINKS = (
    *[f"../../{SECRET}"] * 4,
    "/etc/passwd",
    "/dev/zero",
    "/dev/stdin",
    "/proc/self/pagemap",
    "/proc/kmsg",
    "/proc/self/mem",
)


def sign(root: Path, name: str, size: int | None = None) -> None:
    """Give the manifest a file's new size and hash, as somebody who means harm would; or a size that is not its own."""
    manifest = root / "bundle.json"
    try:
        data = json.loads(manifest.read_bytes())
        secret = (root / name).resolve().name == SECRET  # which is not read, by nobody
        content = b"" if size is not None else KEPT if secret else (root / name).read_bytes()
    except (OSError, ValueError):
        return

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if node.get("path") == name:
                node |= {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(data)
    manifest.write_bytes(json.dumps(data).encode())


def change_manifest(root: Path, random: Random) -> str:
    path = root / "bundle.json"
    if random.random() < 0.15:
        data, said = battered(path.read_bytes(), random)
    else:
        tree = json.loads(path.read_bytes())
        said = "; ".join(damage(tree, random) for _ in range(random.choice((1, 1, 1, 2, 4))))
        data = written(tree)
    path.write_bytes(data)
    return f"bundle.json: {said}"


def change_file(root: Path, name: str, random: Random) -> str:
    path = root / name
    data = path.read_bytes()
    if name.endswith(".json"):
        tree = json.loads(data)
        said = "; ".join(damage(tree, random) for _ in range(random.choice((1, 1, 3))))
        data = written(tree)
    elif name.endswith(".onnx") and random.random() < 0.8:
        said = ""
        for _ in range(random.choice((1, 1, 4))):
            data, more = rewired(data, random)
            said += f"{more}; "
    elif name.endswith(".safetensors"):
        data, said = reheaded(data, random)
    else:
        data, said = battered(data, random)
    path.write_bytes(data)
    signed = random.random() < 0.9
    if signed:
        sign(root, name)
    return f"{name}: {said}{', signed' if signed else ''}"


def change_place(root: Path, random: Random) -> str:
    """Put something else where a file is: a link, a pipe, a folder, another file."""
    path = random.choice(sorted(root.iterdir()))
    how = random.choice(("link", "link", "link", "inside", "loop", "pipe", "folder", "other", "gone"))
    if how == "other":
        other = random.choice(sorted(p for p in root.iterdir() if p.is_file()))
        if other != path:
            shutil.copyfile(other, path)
            sign(root, path.name)
        return f"{path.name} is {other.name}"
    path.unlink()
    if how == "link":
        target = random.choice(LINKS)
        path.symlink_to(target)
        if path.name != "bundle.json" and path.resolve().name == SECRET:
            sign(root, path.name)
        elif path.name != "bundle.json":
            sign(root, path.name, size=0)
        return f"{path.name} -> {target}"
    if how == "inside":
        path.symlink_to(random.choice(sorted(root.iterdir())).name)
    elif how == "loop":
        path.symlink_to(path.name)
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    return f"{path.name}: {how}"


def change_location(root: Path, random: Random) -> str:
    """Send a graph to weights that lie elsewhere."""
    name = random.choice(("unet.onnx", "vae_decoder.onnx"))
    data = (root / name).read_bytes()
    old = f"{name}.data".encode()
    if old not in data:
        return change_file(root, name, random)
    size = len(old)
    options = [
        f"../../{SECRET}",
        f"/{SECRET}",
        ".",
        "..",
        "bundle.json",
        "tokenizer.json",
        "./././unet",
        "link/x",
        "\x00x",
    ]
    new = random.choice(options).encode()
    new = (
        new + b"/" * (size - len(new)) if random.random() < 0.2 else (b"./" * size)[: (size - len(new)) // 2 * 2] + new
    )
    if len(new) != size:
        new = new[:1] * (size - len(new)) + new if len(new) < size else new[:size]
    (root / name).write_bytes(data.replace(old, new))
    sign(root, name)
    return f"{name}: weights at {new!r}"


def change(root: Path, random: Random) -> str:
    """Damage a bundle in one way; tells what was done."""
    kind = random.choices(("manifest", "graph", "tokenizer.json", "golden.safetensors", "place", "location"), SHARES)[0]
    if kind == "graph":
        kind = random.choice(sorted(path.name for path in root.glob("*.onnx")))
    changes = {"manifest": change_manifest, "place": change_place, "location": change_location}
    return changes[kind](root, random) if kind in changes else change_file(root, kind, random)


class Bundles:
    """Load, look at, draw with and verify a damaged bundle."""

    name = "bundles"
    at_once = 1

    def prepare(self, work: Path) -> None:
        (work / SECRET).write_bytes(KEPT)

    def roots(self, work: Path) -> list[Path]:
        return [DATA]

    def run(self, numbers: range, seed: int, folder: Path, report: Report) -> None:
        for number in numbers:
            random = dice(self.name, seed, number)
            root = Path(shutil.copytree(DATA / random.choice(("tiny", "tiny", "half")), folder / "bundle"))
            said = change(root, random)
            how = random.choices(("info", "verify", ""), (25, 15, 60))[0]
            report(judged(said, partial(use, root, how)))


def use(root: Path, how: str) -> None:
    """Look at a bundle (``info``), verify it, or neither; then draw with it, and save the picture."""
    if how:
        command(how, str(root))
    with edgediff.load(root, threads=1) as pipe:
        for step in pipe.stream("a red (apple:1.2)", seed=1, num_inference_steps=2, negative_prompt="blue"):
            if step.index == 0 and pipe.bundle.preview is not None:
                step.preview()
            if step.last:
                result = step.result()
    picture = root.parent / "picture.png"
    edgediff.save(result.images[0], picture)
    picture.unlink()


KIND = Bundles()
