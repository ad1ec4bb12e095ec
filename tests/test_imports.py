"""The floors of the runtime, and the budget of `import edgediff`."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "edgediff"
FLOORS = {
    0: ("errors", "levels", "spacings", "multistep", "steps", "rng", "image", "version"),
    1: ("samplers", "names", "table", "tokenizer", "prompt", "embeddings"),
    2: (
        *("guidance", "texts", "bundle", "conditions", "inpaint", "kernels", "device"),
        *("engines", "engines.onnxruntime", "engines.tensorrt", "engines.parts", "engines.building"),
        *("engines.build_plan", "engines.preflight", "engines.driver", "engines.plans", "engines.shapes"),
        "engines.survey",
    ),
    3: ("loop", "cuda", "request", "resident"),
    4: ("pipeline",),
    5: ("verify",),
    6: ("cli", "build_command", "info_command", "parse", "progress", "__init__", "__main__"),
    7: ("examples", "examples.batch", "examples.desktop", "examples.service"),
}
FLOOR_OF = {module: floor for floor, modules in FLOORS.items() for module in modules}
# Rooms of one floor that lean on each other; everything else imports strictly downward.
BESIDE = {
    ("levels", "errors"),
    ("rng", "errors"),
    ("image", "errors"),
    ("spacings", "levels"),
    ("steps", "levels"),
    ("spacings", "errors"),
    ("names", "samplers"),
    ("table", "names"),
    ("table", "samplers"),
    ("engines", "bundle"),
    ("conditions", "bundle"),
    ("inpaint", "bundle"),
    ("engines.onnxruntime", "bundle"),
    ("engines.onnxruntime", "engines"),
    ("engines", "engines.onnxruntime"),
    ("device", "kernels"),
    ("engines", "device"),
    ("engines.onnxruntime", "device"),
    *(
        (f"engines.{module}", other)
        for module, others in {
            "shapes": ("bundle",),
            "plans": ("bundle", "engines", "engines.shapes"),
            "preflight": ("engines.driver", "engines.plans"),
            "building": ("bundle", "engines.build_plan", "engines.plans", "engines.preflight", "engines.shapes"),
            "tensorrt": ("bundle", "device", "engines.plans", "engines.preflight", "engines.shapes"),
            "survey": ("bundle", "device", "engines", "engines.onnxruntime", "engines.plans", "engines.preflight"),
            "parts": ("bundle", "device", "engines", "engines.plans", "engines.preflight", "engines.shapes"),
        }.items()
        for other in others
    ),
    ("engines.parts", "engines.tensorrt"),
    ("resident", "cuda"),
    *(("cli", other) for other in ("progress", "parse", "build_command", "info_command")),
    ("info_command", "parse"),
    *(("build_command", other) for other in ("progress", "parse")),
    ("__main__", "cli"),
}
LAZY = {"onnxruntime", "tensorrt", "PIL", "tokenizers", "safetensors", "cuda"}


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
            if node.module:
                out.append((".".join(["edgediff", *base, node.module]), level))
            else:
                out += [(".".join(["edgediff", *base, alias.name]), level) for alias in node.names]
    return out


@pytest.mark.parametrize("module", modules())
def test_imports_point_downward(module: str) -> None:
    assert module in FLOOR_OF, f"{module} stands on no floor; add it to FLOORS"
    for name, _ in imports(module):
        if name.startswith("edgediff."):
            target = name.removeprefix("edgediff.")
            target = target if target in FLOOR_OF else target.rpartition(".")[0]  # a name inside a package
            downward = FLOOR_OF[target] < FLOOR_OF[module]
            assert downward or (module, target) in BESIDE or module == "__init__", f"{module} imports {target}"


@pytest.mark.parametrize("module", modules())
def test_outside_packages(module: str) -> None:
    for name, top in imports(module):
        root = name.split(".")[0]
        if root in sys.stdlib_module_names or root in ("edgediff", "numpy"):
            continue
        assert root in LAZY, f"{module} imports {name}"
        assert not top, f"{module} imports {name} when it is imported"


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
