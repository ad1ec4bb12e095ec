"""What was found once is tried every time: each file of the corpus in place of a bundle's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import edgediff
from edgediff.bundle.reading import read_bundle

from .bundles import DATA, sign, use
from .children import Outcome, in_child, judged

CORPUS = Path(__file__).parent / "corpus"
# The file that each folder's stand for.
NAMES = {"manifests": "bundle.json", "tokenizers": "tokenizer.json", "graphs": "unet.onnx"}


def files(folder: str) -> list[Path]:
    return sorted((CORPUS / folder).iterdir()) if (CORPUS / folder).is_dir() else []


def tried(case: str, act: object, *roots: Path) -> list[Outcome]:
    return in_child(lambda report: report(judged(case, act)), [*roots, DATA])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "file", [f for folder in NAMES for f in files(folder)], ids=lambda f: f"{f.parent.name}-{f.stem}"
)
def test_bundles(file: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(DATA / "tiny", tmp_path / "bundle"))
    name = NAMES[file.parent.name]
    shutil.copyfile(file, root / name)
    if name != "bundle.json":
        sign(root, name)
    for how in ("info", "verify", ""):
        for outcome in tried(file.name, lambda how=how: use(root, how), tmp_path):
            assert outcome.fine, outcome
    if name == "bundle.json":  # quickly, whatever it holds
        outcome = tried(file.name, lambda: read_bundle(root), tmp_path)[0]
        assert outcome.cpu < 1, outcome


@pytest.mark.parametrize("file", files("embeddings"), ids=lambda f: f.stem)
def test_embeddings(file: Path) -> None:
    pipe = edgediff.load(DATA / "tiny")
    for outcome in tried(file.name, lambda: pipe.load_textual_inversion(file), CORPUS):
        assert outcome.fine, outcome
