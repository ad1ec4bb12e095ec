"""The text of a PTX module, as nvcc and NVRTC write it, becomes instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass

BYTES = {"b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2} | {
    f"{kind}{bits}": bits // 8 for kind in "busf" for bits in (32, 64)
}
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
ENTRY = re.compile(r"\.entry\s+(\w+)\s*\(([^)]*)\)([^{]*)\{(.*?)^\}", re.DOTALL | re.MULTILINE)
PARAMETER = re.compile(r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(\w+)(?:\[(\d+)\])?")
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(%\w+?)<\d+>")
SHARED = re.compile(r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(\w+)(?:\[(\d+)\])?")
STATEMENT = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")


class PtxError(Exception):
    """PTX that this interpreter does not know."""


@dataclass(frozen=True)
class Instruction:
    """An instruction, as written: ``@!%p1 ld.global.f32 %f1, [%rd1+4];``."""

    opcode: str
    operands: tuple[str, ...]
    guard: str = ""  # the predicate's register
    negated: bool = False


@dataclass(frozen=True)
class Field:
    """A field has a place in a kernel's parameters, or in a block's shared memory."""

    offset: int
    size: int


@dataclass(frozen=True)
class Kernel:
    """A kernel is one entry of a module."""

    name: str
    parameters: dict[str, Field]
    shared: dict[str, Field]
    registers: dict[str, str]  # type by prefix: "%rd" is b64
    most_threads: int  # of a block
    code: tuple[Instruction, ...]
    labels: dict[str, int]  # the instruction that follows


def parse(text: str) -> dict[str, Kernel]:
    """The kernels of a module, by name.

    Raises:
        PtxError: there is none, or one declares what is not known here (local memory, calls).
    """
    kernels = {m[1]: _kernel(m[1], m[2], m[3], m[4]) for m in ENTRY.finditer(COMMENT.sub("", text))}
    if not kernels:
        raise PtxError("the text has no entry")
    return kernels


def _kernel(name: str, parameters: str, bounds: str, body: str) -> Kernel:
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    registers: dict[str, str] = {}
    shared: list[tuple[str, ...]] = []
    body = re.sub(r"(\$\w+):", r"\1:;", body)
    for statement in re.sub(r"^\s*\{|\}\s*$", "", body, flags=re.MULTILINE).split(";"):
        statement = statement.strip().strip("{").strip()  # inline assembly stands in braces of its own
        if not statement or statement == "}" or statement.startswith(".pragma"):
            continue
        if statement.endswith(":"):
            labels[statement[:-1]] = len(code)
        elif found := REGISTERS.fullmatch(statement):
            registers[found[2]] = found[1]
        elif found := SHARED.fullmatch(statement):
            shared.append(found.groups())
        elif found := STATEMENT.fullmatch(statement):
            code.append(Instruction(found[3], tuple(OPERAND.findall(found[4])), found[2] or "", found[1] == "!"))
        else:
            raise PtxError(f"{name}: cannot read {statement!r}")
    most = re.search(r"\.maxntid\s+(\d+)", bounds)
    return Kernel(
        name=name,
        parameters=_layout(PARAMETER.findall(parameters)),
        shared=_layout(shared),
        registers=registers,
        most_threads=int(most[1]) if most else 1024,
        code=tuple(code),
        labels=labels,
    )


def _layout(declared: list[tuple[str, ...]]) -> dict[str, Field]:
    """The fields one behind the other, each at a multiple of its alignment."""
    fields: dict[str, Field] = {}
    end = 0
    for alignment, kind, name, count in declared:
        size = BYTES[kind] * int(count or 1)
        step = int(alignment or BYTES[kind])
        offset = -(-end // step) * step
        fields[name] = Field(offset, size)
        end = offset + size
    return fields
