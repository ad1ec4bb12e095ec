"""Checks of source against the types of TensorRT: that mypy finds no error, and that it could have found any."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
MESSAGE = re.compile(r"(.+?):(\d+):(\d+):(\d+):(\d+): (error|note): (.+)")
REVEALED = re.compile(r'Revealed type is "(.+)"')
# Members that the untyped objects of CUDA's packages have as well.
EVERYDAY = {"allocate", "code", "count", "data", "deallocate", "dtype", "flags", "itemsize", "name", "nbytes"}
EVERYDAY |= {"shape", "size", "strides"}
Span = tuple[int, int, int, int]


@dataclass(frozen=True)
class Message:
    """What mypy says of one span of a file."""

    path: Path
    span: Span
    is_error: bool
    text: str

    def __str__(self) -> str:
        return f"{self.path.name}:{self.span[0]}: {self.text}"


def imported(tree: ast.AST) -> dict[str, str]:
    """The modules that a file imports whole, by the names that it gives them."""
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
    return {name.asname or name.name.split(".")[0]: name.name for node in imports for name in node.names}


def our_sources() -> list[Path]:
    """Every file of the library and its tools that imports TensorRT."""
    files = [file for folder in ("edgediff", "export", "benchmarks") for file in sorted((ROOT / folder).rglob("*.py"))]
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    return [file for file, text in texts.items() if "tensorrt" in imported(ast.parse(text)).values()]


def mypy(paths: Iterable[Path], types: Path, cache: Path, shadows: Sequence[tuple[Path, Path]] = ()) -> list[Message]:
    """What mypy says with the project's settings and TensorRT's types, of those types as well."""
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(cache)]
    command += ["--follow-imports", "silent", "--warn-unreachable", "--no-error-summary", "--show-error-end"]
    command += ["--no-pretty", "--hide-error-context", "--show-absolute-path", "--no-color-output"]
    for shadow in shadows:
        command += ["--shadow-file", *map(str, shadow)]
    done = subprocess.run(
        [*command, str(types / "tensorrt" / "__init__.pyi"), *map(str, paths)],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(types)},
        capture_output=True,
        text=True,
    )
    found = []
    for line in done.stdout.splitlines():
        if (match := MESSAGE.fullmatch(line)) is None:
            raise RuntimeError(done.stdout + done.stderr)
        row, column, end_row, end_column = (int(match[group]) for group in range(2, 6))
        found.append(Message(Path(match[1]), (row, column, end_row, end_column), match[6] == "error", match[7]))
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stdout + done.stderr)
    return found


class Vocabulary:
    """The names that TensorRT has in any of the releases."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self.members: set[str] = set()
        self.paths: set[str] = set()
        for folder in folders:
            self.add(ast.parse((folder / "tensorrt" / "__init__.pyi").read_text()), "")

    def add(self, body: ast.Module | ast.ClassDef, owner: str) -> None:
        for node in body.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                name = node.name
            elif isinstance(node, ast.AnnAssign | ast.Assign):
                name = ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])
            else:
                continue
            self.paths.add(owner + name)
            if owner and not name.startswith("__"):
                self.members.add(name)
            if isinstance(node, ast.ClassDef):
                self.add(node, f"{owner}{name}.")

    def __contains__(self, name: object) -> bool:
        return name in self.members or name in self.paths


class NoFormats(ast.NodeTransformer):
    """Formatted strings as tuples of what they hold, which may run over lines."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:
        self.generic_visit(node)
        return ast.Tuple([each.value for each in node.values if isinstance(each, ast.FormattedValue)], ast.Load())


class Source:
    """A file, and the places in it that only types can check: those that take a member of some object of TensorRT."""

    def __init__(self, path: Path, words: Vocabulary) -> None:
        self.path = path
        self.words = words
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text)
        self.modules = imported(self.tree)
        nodes = [node for node in ast.walk(self.tree) if isinstance(node, ast.Attribute)]
        self.named = [node for node in nodes if self.module_of(node) == "tensorrt"]
        members = words.members - EVERYDAY
        self.taken = [node for node in nodes if self.module_of(node) is None and node.attr in members]

    def module_of(self, node: ast.expr) -> str | None:
        """The module in which the source looks a dotted name up; what is found there needs no types."""
        while isinstance(node, ast.Attribute):
            node = node.value
        return self.modules.get(node.id) if isinstance(node, ast.Name) else None

    def is_elsewhere(self, node: ast.expr) -> bool:
        return self.module_of(node) not in (None, "tensorrt")

    def reveal(self, written: Path) -> dict[Span, ast.Attribute]:
        """Write the source with ``reveal_type`` around each object whose member is taken; where each of them is."""
        tree = ast.parse(self.text)
        marked: dict[ast.Call, ast.Attribute] = {}
        # Trees of one text are walked in one order.
        for node, copy in zip(ast.walk(self.tree), list(ast.walk(tree)), strict=True):
            if isinstance(node, ast.Attribute) and isinstance(copy, ast.Attribute) and node in self.taken:
                copy.value = ast.Call(ast.Name("reveal_type", ast.Load()), [copy.value], [])
                marked[copy.value] = node
        # One to a line: mypy says the same thing of one line once.
        text = ast.unparse(NoFormats().visit(tree)).replace("reveal_type(", "reveal_type(\n")
        written.write_text(text, encoding="utf-8")
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
        calls = [call for call in calls if ast.unparse(call.func) == "reveal_type"]
        places = {}
        for call, copy in zip(calls, [copy for copy in ast.walk(tree) if copy in marked], strict=True):
            value = call.args[0]
            span = (value.lineno, value.col_offset + 1, value.end_lineno or 0, value.end_col_offset or 0)
            places[span] = marked[copy]
        return places

    def unchecked(self, types: Iterable[Path], cache: Path, folder: Path) -> list[str]:
        """What the types of no release can have checked."""
        found = []
        for number, line in enumerate(self.text.splitlines(), 1):
            if re.search(r"#\s*(type:\s*ignore|mypy:)|no_type_check", line):
                found.append((number, "switches the check off"))
        for named in self.named:
            name = ast.unparse(named).partition(".")[2]
            # mypy does not look into code that it holds to be unreachable.
            if name not in self.words.paths and not name.endswith("__"):
                found.append((named.lineno, f"no release has {name}"))
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tensorrt":
                found.append((node.lineno, "imports parts of TensorRT: import it whole"))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
                word = getattr(node.args[1], "value", None)
                if node.func.id in ("getattr", "setattr") and word in self.words:
                    found.append((node.lineno, f"{node.func.id} of {word}: guard by hasattr"))
                if node.func.id == "hasattr" and word not in self.words and not self.is_elsewhere(node.args[0]):
                    found.append((node.lineno, f"no release has {word}"))
        shadow = folder / self.path.name
        places = self.reveal(shadow)
        seen: set[ast.Attribute] = set()
        for each in types:
            kinds: dict[Span, list[str]] = {}
            for message in mypy([self.path], each, cache, [(self.path, shadow)]):
                if message.path == self.path and (match := REVEALED.match(message.text)):
                    kinds.setdefault(message.span, []).append(match[1])
            # Behind hasattr it is Any in the releases that lack the name, and has a type in the others.
            seen |= {places[span] for span, revealed in kinds.items() if not any(map(is_any, revealed))}
        for lost in (node for node in self.taken if node not in seen):
            found.append((lost.lineno, f"{ast.unparse(lost.value)} has no type: nothing checks .{lost.attr}"))
        return [f"{self.path.name}:{number}: {what}" for number, what in sorted(found)]


def is_any(kind: str) -> bool:
    """Whether a revealed type is ``Any`` or a union with it, not a generic of it."""
    while (outer := re.sub(r"\[[^\[\]]*\]", "", kind)) != kind:
        kind = outer
    return "Any" in re.split(r"\W+", kind)
