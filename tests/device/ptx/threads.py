"""The threads of a launch, all at once: registers, and operands that read and write them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arithmetic import PREDICATE, dtype_of
from .memory import Memory
from .parsing import BYTES, Kernel, PtxError

Array = NDArray[Any]
Index = Any  # of threads: an array of their numbers, or all of them
ALL = slice(None)
Read = Callable[["Threads", Index], Array]
Write = Callable[["Threads", Index, Array], None]


class Threads:
    """These threads are some blocks of a grid, which run together.

    Args:
        kernel: what they run.
        grid, block: blocks along x and y, and threads a block.
        chosen: the blocks, numbered along x first.
        parameters: the kernel's, in bytes.
        memory: the device's.
    """

    def __init__(
        self,
        kernel: Kernel,
        grid: tuple[int, int],
        block: int,
        chosen: Sequence[int],
        parameters: bytes,
        memory: Memory,
    ) -> None:
        numbers = np.asarray(chosen, np.int64)
        self.count, self.memory = len(numbers) * block, memory
        self.parameters = np.frombuffer(parameters, np.uint8)
        self.place = np.repeat(np.arange(len(numbers)), block)  # of a thread's block in `shared`
        self.block = np.repeat(numbers, block)
        self.shared = np.zeros(
            (len(numbers), max((f.offset + f.size for f in kernel.shared.values()), default=0)), "u1"
        )
        self.registers: dict[str, Array] = {}
        self.special = {
            "%tid.x": np.tile(np.arange(block, dtype=np.uint32), len(numbers)),
            "%ctaid.x": (self.block % grid[0]).astype(np.uint32),
            "%ctaid.y": (self.block // grid[0]).astype(np.uint32),
            "%ntid.x": np.full(self.count, block, np.uint32),
            "%nctaid.x": np.full(self.count, grid[0], np.uint32),
            "%nctaid.y": np.full(self.count, grid[1], np.uint32),
        }

    def number_of(self, which: Index) -> int:
        """How many threads an index holds."""
        return self.count if which is ALL else len(which)


def register_type(kernel: Kernel, name: str) -> Any:
    """The unsigned type, or bool, that holds a register of this name."""
    prefix = re.match(r"%[a-z]+", name)
    kind = kernel.registers.get(prefix[0]) if prefix else None
    if kind is None:
        raise PtxError(f"{kernel.name} declares no register {name}")
    return dtype_of(kind if kind == PREDICATE else f"b{8 * BYTES[kind]}")


def reader(kernel: Kernel, text: str, kind: str) -> Read:
    """What reads an operand, a register or a number, as a PTX type.

    Raises:
        PtxError: the register is too narrow, or the text is neither.
    """
    wanted = dtype_of(kind)
    if text.startswith("%") and "." in text:
        return lambda threads, i: threads.special[text][i].view(wanted)
    if not text.startswith("%"):
        value = _constant(text, wanted)
        return lambda threads, i: np.full(threads.number_of(i), value, wanted)
    held = register_type(kernel, text)
    if held.itemsize < wanted.itemsize or (held.kind == "b") != (wanted.kind == "b"):
        raise PtxError(f"{kernel.name}: register {text} is read as {kind}")

    def read(threads: Threads, i: Index) -> Array:
        if text not in threads.registers:
            raise PtxError(f"{kernel.name} reads register {text} before anything is written to it")
        values = threads.registers[text][i]
        if held.itemsize > wanted.itemsize:
            values = values.astype(f"u{wanted.itemsize}")
        return values.view(wanted)

    return read


def writer(kernel: Kernel, text: str, kind: str) -> Write:
    """What writes a register with values of a PTX type, extended where it is wider. Errors as ``reader``."""
    held, given = register_type(kernel, text), dtype_of(kind)
    if held.itemsize < given.itemsize or (held.kind == "b") != (given.kind == "b"):
        raise PtxError(f"{kernel.name}: register {text} is written as {kind}")

    def write(threads: Threads, i: Index, values: Array) -> None:
        if values.dtype != given:
            raise PtxError(f"{kernel.name}: {kind} was computed as {values.dtype}")
        if held.itemsize > given.itemsize:
            values = values.astype(f"{given.kind if given.kind == 'i' else 'u'}{held.itemsize}")
        values = values.view(held)
        if text not in threads.registers:
            threads.registers[text] = np.zeros(threads.count, held)
        threads.registers[text][i] = values

    return write


def _constant(text: str, wanted: Any) -> Any:
    if found := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", text):
        return np.array(int(found[1], 16), np.uint32).view(np.float32)
    if wanted.kind == "b":
        return {"0": False, "1": True, "-1": True}[text]
    try:
        value = int(text.rstrip("U"), 0)
    except ValueError:
        raise PtxError(f"{text!r} is no register and no number") from None
    bits = 8 * wanted.itemsize
    return np.array(value & ((1 << bits) - 1), f"u{wanted.itemsize}").view(wanted)
