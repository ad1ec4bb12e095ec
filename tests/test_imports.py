"""The floors of the runtime, the packages that are shipped, and the budget of `import edgediff`."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "edgediff"
# Folders and files of the package, from the top floor down; each imports only from those below it.
FLOORS = (
    *("cli", "examples", "verify", "pipeline", "generation", "engines", "bundle", "device", "sampling", "prompts"),
    *("image", "compare", "checks", "arrays", "errors", "version"),
)
LAZY = {"onnxruntime", "tensorrt", "PIL", "tokenizers", "safetensors", "cuda", "tqdm"}


def modules() -> list[str]:
    found = [p.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".") for p in PACKAGE.rglob("*.py")]
    return sorted(m.removesuffix(".__init__") for m in found)


def imports(module: str) -> list[tuple[str, bool]]:
    """(absolute module name, at module level) of every import; edgediff's own are named from the package."""
    path = PACKAGE / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = {id(node) for node in tree.body}
    out = []
    for node in ast.walk(tree):
        level = id(node) in top
        if isinstance(node, ast.Import):
            out += [(alias.name, level) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            out.append((node.module or "", level))
        elif isinstance(node, ast.ImportFrom):
            base = [] if module == "__init__" else package[: len(package) - node.level + 1]
            name = ".".join(["edgediff", *base, *([node.module] if node.module else [])])
            inner = [f"{name}.{alias.name}" for alias in node.names]
            known = {f"edgediff.{m}" for m in modules()}
            out += [(i if i in known else name, level) for i in inner]
    return out


def own(module: str) -> set[str]:
    """The modules of the package that a module imports, anywhere in it."""
    names = (name for name, _ in imports(module) if name.startswith("edgediff."))
    return {name.removeprefix("edgediff.") for name in names}


@pytest.mark.parametrize("module", [m for m in modules() if m not in ("__init__", "__main__")])
def test_imports_point_downward(module: str) -> None:
    floor = module.split(".")[0]
    assert floor in FLOORS, f"{module} stands on no floor; add its folder to FLOORS"
    for target in own(module):
        below = target.split(".")[0]
        if below != floor:
            assert below in FLOORS, f"{module} imports {target}, which stands on no floor"
            assert FLOORS.index(below) > FLOORS.index(floor), f"{module} imports {target}, which is not below it"


def test_no_circles() -> None:
    """Nothing imports what imports it, inside a folder either."""
    graph = {module: own(module) - {module} for module in modules() if module.split(".")[0] in FLOORS}
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for target in sorted(graph.get(module, ())):
                walk(target, (*path, module))
            done.add(module)

    for module in graph:
        walk(module, ())


@pytest.mark.parametrize("module", modules())
def test_outside_packages(module: str) -> None:
    for name, top in imports(module):
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
    for folder, name in (("edgediff", "edgediff"), ("export", "edgediff_export")):
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
    assert not [(m, n) for m in modules() for n, _ in imports(m) if n.startswith(("edgediff_export", "export"))]
