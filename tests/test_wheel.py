"""The wheel holds runtime, export stage and CUDA sources whole: code, schema, the model, CLIP's vocabulary."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"edgediff": "edgediff", "export": "edgediff_export", "cpp_ext/cuda": "edgediff_cuda"}
# For readers and trainers of the built-in model, who have the repository.
NOT_SHIPPED = ("*.md", "pipeline", "card.json", "LICENSE.model", "__pycache__")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the wheel is built from, without what stays out of it; no caches and nothing of an earlier build."""
    root = tmp_path_factory.mktemp("tree")
    for folder in PACKAGES:
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns(*NOT_SHIPPED))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root)
    return root


@pytest.mark.slow
def test_the_wheel_is_whole(tree: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77", reason="setuptools 77 builds the wheel")
    before = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    done = subprocess.run([sys.executable, "-c", BUILD, tmp_path], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    (wheel,) = tmp_path.glob("edgediff-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
        metadata = archive.read(next(n for n in archive.namelist() if n.endswith("/METADATA"))).decode()
        licences = sorted(name.partition("/licenses/")[2] for name in archive.namelist() if "/licenses/" in name)
    expected = set()
    for path in before:
        for folder, package in PACKAGES.items():
            if path.startswith(f"{folder}/"):
                expected.add(f"{package}/{path.removeprefix(f'{folder}/')}")
    assert shipped == expected
    assert {
        "edgediff/py.typed",
        "edgediff/bundle/bundle.schema.json",
        "edgediff/models/emoji/unet.onnx",
        "edgediff_cuda/kernels.cu",
    } <= shipped
    assert "License-Expression: Apache-2.0 AND OFL-1.1 AND MIT" in metadata
    assert len(licences) == 3
    assert wheel.stat().st_size < 22 * 2**20
