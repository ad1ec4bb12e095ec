"""Who imports whom in a package, read from its source: the import tests name its floors."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """The modules below ``root``, which imports as ``name``. Modules are named from the package: ``cli.main``."""

    root: Path
    name: str

    @cached_property
    def modules(self) -> list[str]:
        paths = (p.relative_to(self.root).with_suffix("") for p in self.root.rglob("*.py"))
        return sorted(p.as_posix().replace("/", ".").removesuffix(".__init__") for p in paths)

    def imports(self, module: str) -> list[tuple[str, bool]]:
        """(absolute module name, at module level) of every import in a module."""
        path = self.root / module.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = {id(node) for node in tree.body}
        known = {f"{self.name}.{m}" for m in self.modules}
        out = []
        for node in ast.walk(tree):
            level = id(node) in top
            if isinstance(node, ast.Import):
                out += [(alias.name, level) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = [] if module == "__init__" else package[: len(package) - node.level + 1]
                relative = [self.name, *base] if node.level else []
                name = ".".join([*relative, *([node.module] if node.module else [])])
                inner = [f"{name}.{alias.name}" for alias in node.names]
                out += [(i if i in known else name, level) for i in inner]
        return out

    def own(self, module: str) -> set[str]:
        """The modules of the package that a module imports, anywhere in it."""
        names = (name for name, _ in self.imports(module) if name.startswith(f"{self.name}."))
        return {name.removeprefix(f"{self.name}.") for name in names}


def check_floor(package: Package, module: str, floors: Sequence[str]) -> None:
    """A module imports only from folders below its own; ``floors`` names them from the top one down."""
    floor = module.split(".")[0]
    assert floor in floors, f"{module} stands on no floor; add its folder to FLOORS"
    for target in package.own(module):
        below = target.split(".")[0]
        if below != floor:
            assert below in floors, f"{module} imports {target}, which stands on no floor"
            assert floors.index(below) > floors.index(floor), f"{module} imports {target}, which is not below it"


def check_circles(package: Package, floors: Sequence[str]) -> None:
    """Nothing imports what imports it, inside a folder either."""
    graph = {module: package.own(module) - {module} for module in package.modules if module.split(".")[0] in floors}
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for target in sorted(graph.get(module, ())):
                walk(target, (*path, module))
            done.add(module)

    for module in graph:
        walk(module, ())
