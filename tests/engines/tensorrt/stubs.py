"""Write a type stub of the imported TensorRT bindings, from the signatures that their own docstrings state.

pybind11-stubgen writes stubs of TensorRT that do not parse (parameters named ``in``) and that leave the types of
many properties open (``...`` for the names of C++), which would check nothing.

A program, to be run in a process of its own, which finds the bindings: ``python stubs.py MODULE STUB``.
"""

from __future__ import annotations

import importlib
import keyword
import re
import sys
from pathlib import Path
from types import ModuleType

# TensorRT overrides and overloads at odds with the rules.
HEADER = """\
# mypy: disable-error-code="override, overload-cannot-match"
import builtins
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy.typing
import typing_extensions
"""
# pybind11's words for types. Its int parameters refuse a float, whatever SupportsInt says, and hand on an int.
WORDS = {
    "Buffer": "typing_extensions.Buffer",
    "Callable": "Callable[..., builtins.object]",
    "CapsuleType": "builtins.object",
    "Iterable": "Iterable[builtins.object]",
    "Iterator": "Iterator",
    "List": "builtins.list",
    "None": "None",
    "Sequence": "Sequence",
    "SupportsFloat": "builtins.float",
    "SupportsInt": "builtins.int",
    "Tuple": "builtins.tuple",
    "buffer": "typing_extensions.Buffer",
    "capsule": "builtins.object",
    "function": "builtins.object",
    "handle": "builtins.object",
    "method": "builtins.object",
    "ndarray": "numpy.typing.NDArray[typing.Any]",
}
BUILTINS = ("bool", "bytes", "dict", "float", "int", "list", "memoryview", "object", "slice", "str", "tuple")
WORDS |= {name: f"builtins.{name}" for name in BUILTINS}
BARE = {
    "Iterator": "Iterator[builtins.object]",
    "builtins.list": "builtins.list[builtins.int]",
    "builtins.tuple": "builtins.tuple[builtins.int, ...]",
}
# Parameters that take other things too, by conversion.
CONVERTED = {
    "Dims": "Dims | Sequence[builtins.int]",
    "Weights": "Weights | numpy.typing.NDArray[typing.Any]",
}
# Null pointers on failure, which the signatures leave out: None.
NULLABLE = {
    "Builder.build_serialized_network",
    "IBuilderConfig.create_timing_cache",
    "IBuilderConfig.get_timing_cache",
    "ICudaEngine.create_execution_context",
    "Runtime.deserialize_cuda_engine",
}
# What is written in Python there, without annotations, or is known to C alone.
PYTHON = {
    "DataType.itemsize": "itemsize: builtins.float",
    "IErrorRecorder.MAX_DESC_LENGTH": "MAX_DESC_LENGTH: typing.ClassVar[builtins.int]",
    "__enter__": "def __enter__(self) -> typing_extensions.Self: ...",
    "__exit__": "def __exit__(self, exc_type: object, exc_value: object, traceback: object) -> None: ...",
    "nptype": "def nptype(trt_type: DataType) -> type[typing.Any]: ...",
    "volume": "def volume(iterable: Iterable[builtins.int]) -> builtins.int: ...",
}
BUFFERS = {"IHostMemory": "    def __buffer__(self, flags: builtins.int, /) -> builtins.memoryview: ..."}
UNTYPED = {"__doc__", "__entries", "__eq__", "__getstate__", "__hash__", "__module__", "__ne__", "__repr__"}
UNTYPED |= {"__setstate__", "__str__"}
SIGNATURE = re.compile(r"^(?:\d+\. )?(\w*)\((.*)\) -> (.+)$", re.MULTILINE)


class Writer:
    """The lines of the stub of one module."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.prefix = f"{module.__name__}."
        self.lines = [HEADER]

    def annotation(self, words: str, result: bool) -> str:
        """A docstring's type as an annotation: ``List[nvinfer1::Dims]`` gives ``builtins.list[Dims]``."""

        def one(match: re.Match[str]) -> str:
            if match[0].startswith(self.prefix):
                name = match[0].split(".", 2)[2]
                return name if result else CONVERTED.get(name, name)
            name = re.split(r"\.|::", match[0])[-1]
            if "::" in match[0]:
                # C++'s IBuilder is Builder in Python, but ILayer is ILayer. What has no class there is of no use.
                known = [each for each in (name, name[1:]) if hasattr(self.module, each)]
                return [*known, "builtins.object"][0]
            return "Sequence" if name == "List" and not result else WORDS[name]

        annotation = re.sub(r"[\w.:]+", one, re.sub(r"detail::accessor<.*?>", "object", words))
        return BARE.get(annotation, annotation)

    def parameters(self, text: str) -> str:
        """The parameters, with ``...`` for their defaults; those without a name there get none here."""
        written: list[str] = []
        required = False
        for part in reversed(re.split(r", (?=\w+: |/)", text) if text else []):
            name, _, words = part.partition(": ")
            words, _, default = words.partition(" = ")
            if name in ("self", "/"):
                written.append(name)
                continue
            # One method of TensorRT has a parameter without a default after one with it.
            required = required or not default
            if re.fullmatch(r"arg\d+", name) and "/" not in written:
                written.append("/")
            kind = self.annotation(words, result=False) + (" | None" if default == "None" else "")
            name += "_" * keyword.iskeyword(name)
            written.append(f"{name}: {kind}" + ("" if required else " = ..."))
        return ", ".join(reversed(written))

    def add_function(self, name: str, doc: str, owner: str = "", static: bool = False) -> None:
        indent = "    " * (owner.count(".") + 1 if owner else 0)
        found = list(SIGNATURE.finditer(doc))
        if not found:
            raise ValueError(f"no signature of {owner}.{name}: {doc[:200]!r}")
        for match in found:
            result = self.annotation(match[3], result=True)
            if f"{owner}.{name}" in NULLABLE:
                result += " | None"
            if len(found) > 1:
                self.lines.append(f"{indent}@typing.overload")
            if static:
                self.lines.append(f"{indent}@builtins.staticmethod")
            self.lines.append(f"{indent}def {name}({self.parameters(match[2])}) -> {result}: ...")

    def add_property(self, name: str, value: property, owner: str) -> None:
        indent = "    " * (owner.count(".") + 1)
        get = SIGNATURE.search(getattr(value.fget, "__doc__", None) or "")
        put = SIGNATURE.search(getattr(value.fset, "__doc__", None) or "")
        kind = self.annotation(get[3], result=True) if get else "builtins.object"
        taken = self.annotation(put[2].partition("arg1: ")[2] or put[2].split(": ")[-1], result=False) if put else ""
        if not get:
            self.lines.append(f"{indent}{name}: {taken or kind}")
            return
        self.lines += [f"{indent}@builtins.property", f"{indent}def {name}(self) -> {kind}: ..."]
        if taken:
            self.lines += [f"{indent}@{name}.setter", f"{indent}def {name}(self, value: {taken}) -> None: ..."]

    def add_type(self, cls: type, owner: str = "") -> None:
        """A class and those inside it. Enumerations are plain classes, with their members as attributes."""
        path = f"{owner}.{cls.__name__}".lstrip(".")
        indent = "    " * path.count(".")
        bases = [base.__qualname__ for base in cls.__bases__ if base.__module__.startswith(self.prefix)]
        self.lines.append(f"{indent}class {cls.__name__}({', '.join(bases) or 'builtins.object'}):")
        indent += "    "
        for name, value in vars(cls).items():
            if (line := PYTHON.get(f"{path}.{name}") or PYTHON.get(name)) is not None:
                self.lines.append(indent + line)
            elif name == "__members__":
                self.lines.append(f"{indent}__members__: typing.ClassVar[builtins.dict[builtins.str, {path}]]")
            elif name == "__init__" and not SIGNATURE.search(value.__doc__ or ""):
                self.lines.append(f"{indent}def __init__(self, has_no_constructor: typing.NoReturn, /) -> None: ...")
            elif name in UNTYPED or "pybind11" in name:
                continue
            elif isinstance(value, property):
                self.add_property(name, value, path)
            elif isinstance(value, type):
                if value.__qualname__ == f"{path}.{name}":
                    self.add_type(value, path)
                else:
                    self.lines.append(f"{indent}{name} = {value.__qualname__}")
            elif isinstance(value, staticmethod):
                self.add_function(name, value.__func__.__doc__ or "", path, static=True)
            elif callable(value):
                self.add_function(name, value.__doc__ or "", path)
            else:
                self.lines.append(f"{indent}{name}: typing.ClassVar[{self.kind(value)}]")
        if "__getitem__" in vars(cls) and "__iter__" not in vars(cls):
            # Type checkers do not follow the old protocol of iteration, which Dims leans on.
            item = SIGNATURE.search(vars(cls)["__getitem__"].__doc__ or "")
            kind = self.annotation(item[3], result=True) if item else "builtins.object"
            self.lines.append(f"{indent}def __iter__(self) -> Iterator[{kind}]: ...")
        if path in BUFFERS:
            self.lines.append(BUFFERS[path])
        self.lines.append(f"{indent}pass")

    def kind(self, value: object) -> str:
        module, name = type(value).__module__, type(value).__qualname__
        return name if module.startswith(self.prefix) else f"{module}.{name}"

    def write(self) -> str:
        for name, value in vars(self.module).items():
            if isinstance(value, ModuleType) or (name.startswith("_") and name != "__version__"):
                continue
            if name in PYTHON:
                self.lines.append(PYTHON[name])
            elif isinstance(value, type):
                self.add_type(value)
            elif getattr(value, "__module__", "").startswith(self.prefix) and callable(value):
                if SIGNATURE.search(value.__doc__ or ""):
                    self.add_function(name, value.__doc__ or "")
            elif self.kind(value).startswith(("builtins.", *vars(self.module))):
                self.lines.append(f"{name}: {self.kind(value)}")
        return "\n".join(self.lines) + "\n"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(Writer(importlib.import_module(sys.argv[1])).write())
