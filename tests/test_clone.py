"""A clone keeps its bytes where git is told to write line endings of Windows."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUNDLES = ("edgediff/models/emoji", "tests/data/tiny", "tests/data/half")
WINDOWS = ("-c", "core.autocrlf=true", "-c", "core.eol=crlf")


def git(*arguments: str) -> str:
    command = ["git", "-c", "safe.directory=*", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last commit, as a clone on Windows writes it."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git clone")
    folder = tmp_path_factory.mktemp("windows") / "clone"
    git("clone", "--quiet", "--shared", "--no-checkout", str(ROOT), str(folder))
    git("-C", str(folder), *WINDOWS, "checkout", "--quiet", git("-C", str(ROOT), "rev-parse", "HEAD").strip())
    return folder


@pytest.mark.parametrize("bundle", BUNDLES)
def test_bundles_of_a_windows_clone_are_what_their_manifests_say(clone: Path, bundle: str) -> None:
    def listed(node: object) -> list[dict[str, str]]:
        if isinstance(node, dict):
            return [node] if "sha256" in node else [f for value in node.values() for f in listed(value)]
        return [f for value in node for f in listed(value)] if isinstance(node, list) else []

    files = listed(json.loads((clone / bundle / "bundle.json").read_bytes()))
    assert len(files) >= 6
    for file in files:
        raw = (clone / bundle / file["path"]).read_bytes()
        assert hashlib.sha256(raw).hexdigest() == file["sha256"], file["path"]


def test_every_file_of_a_windows_clone_has_the_bytes_that_were_committed(clone: Path) -> None:
    committed = {}
    for line in git("-C", str(clone), "ls-tree", "-r", "HEAD").splitlines():
        fields, path = line.split("\t")
        committed[path] = fields.split()[2]
    assert len(committed) > 300
    paths = list(committed)
    found = git("-C", str(clone), "hash-object", "--no-filters", *paths).split()
    assert [p for p, digest in zip(paths, found, strict=True) if committed[p] != digest] == []
