"""Folders of another exporter, as optimum lays them out: damaged configs, graphs, vocabularies; links."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from random import Random

from ..support.foreign import make_foreign
from .bundles import DATA, KEPT, LINKS, SECRET, change_file, use
from .children import Report, judged
from .kinds import dice


def change(root: Path, random: Random) -> str:
    """Damage one file, or put something else in its place."""
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    name = random.choice(files)
    if random.random() < 0.9:
        return change_file(root, name, random)
    path = root / name
    if random.random() < 0.3:  # a folder in the middle
        path, name = path.parent, path.parent.name
        shutil.rmtree(path)
    else:
        path.unlink()
    how = random.choice((*LINKS, "pipe", "folder", "gone"))
    if how == "pipe":
        os.mkfifo(path)
    elif how == "folder":
        path.mkdir()
    elif how != "gone":
        path.symlink_to(how)
    return f"{name} -> {how}"


class Foreign:
    """Load, look at and draw with a damaged folder."""

    name = "foreign"
    at_once = 1

    def prepare(self, work: Path) -> None:
        (work / SECRET).write_bytes(KEPT)
        make_foreign(DATA / "tiny", work / "foreign")

    def roots(self, work: Path) -> list[Path]:
        return [work / "foreign"]

    def run(self, numbers: range, seed: int, folder: Path, report: Report) -> None:
        for number in numbers:
            random = dice(self.name, seed, number)
            root = Path(shutil.copytree(folder.parent / "foreign", folder / "bundle"))
            said = change(root, random)
            report(judged(said, partial(use, root, random.choice(("info", "")))))


KIND = Foreign()
