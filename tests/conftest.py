"""Shared models, oracles and marks. Nothing here needs torch before a test asks for it."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import NoReturn

# One thread for torch and BLAS, before either is imported: models of toy width only wait for a second one.
for _library in ("OMP", "MKL", "OPENBLAS"):
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

import pytest  # noqa: E402

import edgediff  # noqa: E402

TESTS = Path(__file__).parent
# What needs the export stage's packages as soon as it is imported.
EXPORTING = ("export", "oracle", "engines/tensorrt/test_operators.py", "test_gpu_benchmark.py")
# Fixtures that need torch, and those that are slow: they export, build in child processes, or fetch wheels.
EXPORTED = {"tiny_source", "wide_source", "family_bundle", "emoji_fp32"}
WITH_TORCH = {"torch", "diffusers", *EXPORTED}
SLOW = {"standin", "wheels", *EXPORTED}
# What a child process would import from the current folder, were that searched: by itself, or by what it runs.
PLANTED = ("torch", "json", "argparse", "runpy", "numpy", "onnx", "edgediff", "edgediff_export", "sitecustomize")
NO_TORCH = find_spec("torch") is None or find_spec("diffusers") is None


def is_exporting(path: Path) -> bool:
    return any(path.is_relative_to(TESTS / name) for name in EXPORTING)


class SkippedModule(pytest.Module):
    """A module that cannot be imported here."""

    def collect(self) -> NoReturn:
        pytest.skip("torch or diffusers is not installed (extra test)")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return SkippedModule.from_parent(parent, path=module_path) if NO_TORCH and is_exporting(module_path) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by where they are and what they ask for; a test may be marked slow by hand as well."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        exporting = is_exporting(item.path)
        if exporting or fixtures & WITH_TORCH:
            item.add_marker("torch")
        if exporting or fixtures & SLOW:
            item.add_marker("slow")


@pytest.fixture(scope="session")
def torch() -> ModuleType:
    return pytest.importorskip("torch", reason="torch, an oracle, is not installed (extra test)")


@pytest.fixture(scope="session")
def diffusers(torch: ModuleType) -> ModuleType:
    return pytest.importorskip("diffusers", reason="diffusers, an oracle, is not installed (extra test)")


@pytest.fixture(scope="session")
def tiny_source(diffusers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline as diffusers saves it. Read-only."""
    from .support.tiny import tiny_pipeline

    return tiny_pipeline(tmp_path_factory.mktemp("tiny") / "pipeline")


@pytest.fixture(scope="session")
def wide_source(diffusers: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline at four times its width: there the weights are more than the graph around them. Read-only."""
    from .support.tiny import tiny_pipeline

    return tiny_pipeline(tmp_path_factory.mktemp("wide") / "pipeline", 4)


def stored(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a stored bundle; tests/export/test_stored.py holds it against the exporter."""
    return Path(shutil.copytree(TESTS / "data" / name, tmp_path_factory.mktemp("stored") / name))


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline as an fp32 bundle. Read-only: copy it to damage it."""
    return stored("tiny", tmp_path_factory)


@pytest.fixture(scope="session")
def half_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline in fp16, with graphs for TensorRT. Read-only."""
    return stored("half", tmp_path_factory)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """A folder by name, made by whichever of the run's processes asks first (``pytest -n``). Read-only."""
    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "shared"
    root.mkdir(exist_ok=True)

    def find(name: str, make: Callable[[Path], object]) -> Path:
        from filelock import FileLock

        with FileLock(root / f"{name}.lock"):
            if not (root / name).exists():
                making = Path(tempfile.mkdtemp(dir=root))
                make(making)
                making.rename(root / name)
        return root / name

    return find


@pytest.fixture(scope="session")
def family_bundle(diffusers: ModuleType, shared: Callable[..., Path]) -> Callable[[str], Path]:
    """The fp32 bundle of a family of models, made when it is first asked for, with ``source`` beside it. Read-only."""
    from edgediff_export.convert import export

    from .support.families import make

    def both(name: str, root: Path) -> None:
        export(make(name, root / "source"), root / "bundle", precision="fp32")

    return lambda name: shared(name, functools.partial(both, name)) / "bundle"


@pytest.fixture
def damaged(tiny_bundle: Path, tmp_path: Path) -> Callable[[], Path]:
    """A fresh copy of the tiny bundle, to break."""

    def copy() -> Path:
        return Path(shutil.copytree(tiny_bundle, tmp_path / "damaged"))

    return copy


@pytest.fixture
def one_chunk(damaged: Callable[[], Path]) -> Path:
    """The tiny bundle with a U-Net that says it takes 77 tokens and no more, as engines of fixed shape do."""
    import json

    root = damaged()
    manifest = json.loads((root / "bundle.json").read_text(encoding="utf-8"))
    for tensor in manifest["parts"]["unet"]["inputs"]:
        if tensor["name"] == "encoder_hidden_states":
            tensor["shape"][1] = 77
    (root / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    return root


@pytest.fixture(scope="session")
def emoji() -> edgediff.Pipeline:
    return edgediff.load().warm()


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder is one that a stranger filled. Tells where planted code leaves its mark."""
    planted = "open({mark!r}, 'a').write(__name__); import os; os._exit(66)\n"
    folder, mark = tmp_path / "model", tmp_path / "mark"
    folder.mkdir()
    for name in PLANTED:
        (folder / f"{name}.py").write_text(planted.format(mark=str(mark)), encoding="utf-8")
    (folder / "edgediff_export").mkdir()
    (folder / "edgediff_export" / "__init__.py").write_text(planted.format(mark=str(mark)), encoding="utf-8")
    monkeypatch.chdir(folder)
    return mark
