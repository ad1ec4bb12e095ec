"""Instructions become functions of the threads: operands are looked up once, not at every step."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .arithmetic import dtype_of, form
from .parsing import BYTES, Field, Instruction, Kernel, PtxError
from .threads import Index, Threads, reader, writer

Action = Callable[[Threads, Index], None]
ADDRESS = re.compile(r"\[(%?[\w$]+)(?:\+(-?\d+))?\]")
WIDTHS = {"v2": 2, "v4": 4}
CACHES = {"cg", "nc"}  # where a value may stay: no matter here
FENCES = ("membar.gl", "fence.acq_rel.gpu")  # one launch's blocks run one after the other, or in lockstep
ATOMIC = {"add": lambda old, new: old + new, "min": min, "or": lambda old, new: old | new}


def decode(kernel: Kernel, instruction: Instruction) -> Action:
    """The function that does an instruction for some threads. Branches, barriers and ends are not among them.

    Raises:
        PtxError: it is not known here.
    """
    opcode, operands = instruction.opcode, instruction.operands
    name = opcode.split(".")[0]
    if opcode in FENCES:
        return lambda threads, i: None
    if name in ("ld", "st"):
        return _access(kernel, opcode, operands)
    if name == "atom":
        return _atomic(kernel, opcode, operands)
    if name == "mov" and any(o.startswith("{") for o in operands):
        return _repacked(kernel, opcode, operands)
    return _computed(kernel, opcode, operands)


def _computed(kernel: Kernel, opcode: str, operands: tuple[str, ...]) -> Action:
    result, takes, compute = form(opcode)
    if len(operands) != 1 + len(takes):
        raise PtxError(f"{kernel.name}: {opcode} has {len(operands)} operands")
    reads = [reader(kernel, text, kind) for text, kind in zip(operands[1:], takes, strict=True)]
    write = writer(kernel, operands[0], result)
    return lambda threads, i: write(threads, i, compute(*(read(threads, i) for read in reads)))


def _elements(operand: str) -> list[str]:
    return [part.strip() for part in operand.strip("{}").split(",")]


def _repacked(kernel: Kernel, opcode: str, operands: tuple[str, ...]) -> Action:
    """``mov.b32 %r1, {%rs1, %rs2}`` and the other way: the first element is the lowest."""
    kind = opcode.split(".")[1]
    into, parts = (_elements(text) for text in operands)
    size = BYTES[kind]
    writes = [writer(kernel, text, f"b{8 * size // len(into)}") for text in into]
    reads = [reader(kernel, text, f"b{8 * size // len(parts)}") for text in parts]

    def act(threads: Threads, i: Index) -> None:
        whole = np.stack([read(threads, i) for read in reads], axis=1).view(np.uint8).view(f"u{size // len(into)}")
        for k, write in enumerate(writes):
            write(threads, i, np.ascontiguousarray(whole[:, k]))

    return act


def _access(kernel: Kernel, opcode: str, operands: tuple[str, ...]) -> Action:
    name, *modifiers, kind = opcode.split(".")
    width = next((WIDTHS[m] for m in modifiers if m in WIDTHS), 1)
    spaces = [m for m in modifiers if m not in WIDTHS and m not in CACHES]
    space = spaces[0] if spaces else "global"  # a generic address is one of global memory: no other is made generic
    if len(spaces) > 1 or space not in ("global", "param", "shared"):
        raise PtxError(f"no instruction {opcode} is known here")
    values, place = operands if name == "ld" else operands[::-1]
    elements = _elements(values)
    if len(elements) != width:
        raise PtxError(f"{kernel.name}: {opcode} has {len(elements)} values")
    if name == "ld":
        return _load(kernel, space, kind, elements, place)
    return _store(kernel, space, kind, elements, place)


def _load(kernel: Kernel, space: str, kind: str, elements: list[str], place: str) -> Action:
    writes = [writer(kernel, text, kind) for text in elements]
    dtype, count = dtype_of(kind), len(elements)
    if space == "global":
        address = _address(kernel, place)

        def load(threads: Threads, i: Index) -> None:
            values = threads.memory.load(address(threads, i), dtype, count, threads.block[i])
            for k, write in enumerate(writes):
                write(threads, i, np.ascontiguousarray(values[:, k]))

        return load
    where = _offset(kernel, space, place, dtype.itemsize * count)

    def fetch(threads: Threads, i: Index) -> None:
        for k, write in enumerate(writes):
            piece = slice(where + k * dtype.itemsize, where + (k + 1) * dtype.itemsize)
            if space == "param":
                value = np.full(threads.number_of(i), threads.parameters[piece].view(dtype)[0], dtype)
            else:
                value = np.ascontiguousarray(threads.shared[threads.place[i], piece]).view(dtype)[:, 0]
            write(threads, i, value)

    return fetch


def _store(kernel: Kernel, space: str, kind: str, elements: list[str], place: str) -> Action:
    reads = [reader(kernel, text, kind) for text in elements]
    if space == "global":
        address = _address(kernel, place)

        def store(threads: Threads, i: Index) -> None:
            values = np.stack([read(threads, i) for read in reads], axis=1)
            threads.memory.store(address(threads, i), values, threads.block[i])

        return store
    if space != "shared" or len(reads) != 1:
        raise PtxError(f"{kernel.name}: a store to {space} memory is not known here")
    size = BYTES[kind]
    where = _offset(kernel, space, place, size)

    def keep(threads: Threads, i: Index) -> None:
        threads.shared[threads.place[i], where : where + size] = reads[0](threads, i)[:, None].view(np.uint8)

    return keep


def _atomic(kernel: Kernel, opcode: str, operands: tuple[str, ...]) -> Action:
    _, space, operation, kind = opcode.split(".")
    if space != "global" or operation not in ATOMIC:
        raise PtxError(f"no instruction {opcode} is known here")
    write, value = writer(kernel, operands[0], kind), reader(kernel, operands[2], kind)
    address = _address(kernel, operands[1])

    def act(threads: Threads, i: Index) -> None:
        before = threads.memory.change(address(threads, i), value(threads, i), threads.block[i], ATOMIC[operation])
        write(threads, i, before)

    return act


def _address(kernel: Kernel, text: str) -> Callable[[Threads, Index], Any]:
    found = ADDRESS.fullmatch(text)
    if found is None or not found[1].startswith("%"):
        raise PtxError(f"{kernel.name}: {text!r} is no address in a register")
    base, offset = reader(kernel, found[1], "u64"), np.int64(int(found[2] or 0)).view(np.uint64)
    return lambda threads, i: base(threads, i) + offset


def _offset(kernel: Kernel, space: str, text: str, size: int) -> int:
    """Where a named field's bytes lie, which must be inside of it."""
    found = ADDRESS.fullmatch(text)
    fields: dict[str, Field] = kernel.parameters if space == "param" else kernel.shared
    if found is None or found[1] not in fields:
        raise PtxError(f"{kernel.name}: {text!r} names no {space} memory")
    field, inside = fields[found[1]], int(found[2] or 0)
    if not 0 <= inside <= field.size - size or (field.offset + inside) % size:
        raise PtxError(f"{kernel.name}: {size} bytes at {text} are outside of it, or not aligned")
    return field.offset + inside
