"""The floors of the runtime, the packages that are shipped, and the budget of `import edgediff`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .support.imports import Package, check_circles, check_floor

ROOT = Path(__file__).parents[1]
PACKAGE = Package(ROOT / "edgediff", "edgediff")
# Folders and files of the package, from the top floor down; each imports only from those below it.
FLOORS = (
    *("cli", "examples", "loading", "verify", "pipeline"),
    *("generation", "engines", "bundle", "device", "sampling", "prompts"),
    *("image", "looks", "scratch", "file_lock", "python_child", "confined", "rust", "compare", "checks", "arrays"),
    *("whole", "files", "cache_folder", "system_memory", "errors", "version"),
)
LAZY = {"onnxruntime", "tensorrt", "PIL", "tokenizers", "safetensors", "cuda", "tqdm"}


@pytest.mark.parametrize("module", [m for m in PACKAGE.modules if m not in ("__init__", "__main__")])
def test_imports_point_downward(module: str) -> None:
    check_floor(PACKAGE, module, FLOORS)


def test_no_circles() -> None:
    check_circles(PACKAGE, FLOORS)


@pytest.mark.parametrize("module", PACKAGE.modules)
def test_outside_packages(module: str) -> None:
    for name, top in PACKAGE.imports(module):
        root = name.split(".")[0]
        if root in sys.stdlib_module_names or root in ("edgediff", "numpy"):
            continue
        assert root in LAZY, f"{module} imports {name}"
        assert not top, f"{module} imports {name} when it is imported"


def test_every_package_is_shipped() -> None:
    """pyproject.toml lists the packages by hand, since export/ has another name when it is installed."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads TOML")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    found = []
    for folder, name in (("edgediff", "edgediff"), ("export", "edgediff_export"), ("cpp_ext/cuda", "edgediff_cuda")):
        for init in sorted((ROOT / folder).rglob("__init__.py")):
            found.append(".".join([name, *init.parent.relative_to(ROOT / folder).parts]))
    assert sorted(listed) == sorted(found)


def test_import_loads_numpy_and_the_standard_library_only() -> None:
    code = "import sys, edgediff; print('\\n'.join(sorted({m.split('.')[0] for m in sys.modules})))"
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    bare = subprocess.run(
        [sys.executable, "-I", "-c", code.replace(", edgediff", ", numpy")], capture_output=True, text=True, check=True
    )
    extra = loaded - set(bare.stdout.split()) - sys.stdlib_module_names
    assert extra == {"edgediff"}
    assert run.stderr == ""


def test_export_is_never_imported() -> None:
    outside = [(m, n) for m in PACKAGE.modules for n, _ in PACKAGE.imports(m)]
    assert not [(m, n) for m, n in outside if n.startswith(("edgediff_export", "export"))]
