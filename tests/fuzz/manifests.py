"""Manifests alone: reading one opens nothing and plans nothing large."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

from edgediff.bundle.reading import read_bundle

from .bundles import DATA, change_manifest
from .children import Report, judged
from .kinds import dice
from .shown import command


class Manifests:
    name = "manifests"
    at_once = 10

    def prepare(self, work: Path) -> None:
        """Nothing is needed."""

    def roots(self, work: Path) -> list[Path]:
        return [DATA]

    def run(self, numbers: range, seed: int, folder: Path, report: Report) -> None:
        root = Path(shutil.copytree(DATA / "tiny", folder / "bundle"))
        for number in numbers:
            random = dice(self.name, seed, number)
            shutil.copyfile(DATA / "tiny" / "bundle.json", root / "bundle.json")
            said = change_manifest(root, random)
            report(judged(said, lambda random=random: self._read(root, random)))

    def _read(self, root: Path, random: Random) -> None:
        bundle = read_bundle(root)
        bundle.files()
        if random.random() < 0.3:
            command("info", str(root))


KIND = Manifests()
