"""A launch of a kernel: its threads in lockstep, apart where they branch apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decoding import Action, decode
from .memory import Memory
from .parsing import Instruction, Kernel, PtxError
from .threads import ALL, Index, Threads, reader

BRANCHES = ("bra", "bra.uni")
ENDS = ("ret", "exit")
BARRIER = "bar.sync"


class BarrierFault(Exception):
    """Threads of a block wait for others that will not come."""


class Program:
    """A program is a kernel whose instructions are decoded.

    Raises:
        PtxError: one is not known here.
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.actions: list[Action | None] = []
        self.guards: list[Any] = []
        for instruction in kernel.code:
            flows = instruction.opcode in (*BRANCHES, *ENDS, BARRIER)
            self.actions.append(None if flows else decode(kernel, instruction))
            self.guards.append(reader(kernel, instruction.guard, "pred") if instruction.guard else None)
        self.parameter_bytes = max((f.offset + f.size for f in kernel.parameters.values()), default=0)

    def launch(
        self,
        grid: tuple[int, int],
        parameters: bytes,
        memory: Memory,
        block: int = 256,
        order: Sequence[Sequence[int]] | None = None,
        counts: Counter[str] | None = None,
    ) -> None:
        """Run every block of a grid to its end.

        Args:
            grid, block: blocks along x and y, and threads a block.
            parameters: the kernel's, in bytes, as a driver takes them.
            memory: the device's.
            order: which blocks run together, one group after the other; None for all at once.
            counts: added to: how many threads came to each opcode.

        Raises:
            ValueError: parameters of another size, or a block or an order that is none.
            MemoryFault, BarrierFault: a GPU would fail here, or hang.
        """
        blocks = grid[0] * grid[1]
        groups = [range(blocks)] if order is None else order
        if len(parameters) != self.parameter_bytes:
            raise ValueError(f"{self.kernel.name} takes {self.parameter_bytes} bytes, not {len(parameters)}")
        if not 0 < block <= self.kernel.most_threads or sorted(b for g in groups for b in g) != list(range(blocks)):
            raise ValueError(f"{self.kernel.name}: {block} threads a block, in the order {groups}")
        for chosen in groups:
            with np.errstate(all="ignore"):
                _Run(self, Threads(self.kernel, grid, block, chosen, parameters, memory), counts).run()


class _Run:
    """Threads at one instruction are a group. The group furthest behind goes first, so that those ahead are met."""

    def __init__(self, program: Program, threads: Threads, counts: Counter[str] | None) -> None:
        self.program, self.threads, self.counts = program, threads, counts
        self.groups: dict[int, Index] = {0: ALL}
        self.waiting: dict[int, Index] = {}  # at a barrier
        self.ended = np.zeros(threads.count, np.bool_)

    def run(self) -> None:
        while self.groups or self.waiting:
            if not self.groups:
                self._release()
            at = min(self.groups)
            self._follow(at, self.groups.pop(at))

    def _follow(self, at: int, who: Index) -> None:
        """Run a group until it branches, waits, ends or meets another."""
        code = self.program.kernel.code
        while True:
            if at in self.groups:
                self._join(self.groups, at, who)
                return
            if at == len(code):
                self.ended[who] = True
                return
            instruction, guard = code[at], self.program.guards[at]
            if self.counts is not None:
                self.counts[instruction.opcode] += self.threads.number_of(who)
            action = self.program.actions[at]
            if action is None:
                self._turn(at, who, instruction)
                return
            doing = who if guard is None else self._split(guard, instruction, who)[0]
            if self.threads.number_of(doing):
                action(self.threads, doing)
            at += 1

    def _turn(self, at: int, who: Index, instruction: Instruction) -> None:
        guard = self.program.guards[at]
        go, stay = (who, None) if guard is None else self._split(guard, instruction, who)
        if instruction.opcode == BARRIER:
            if guard is not None:
                raise PtxError(f"{self.program.kernel.name}: a barrier under a condition")
            self._join(self.waiting, at, who)
            return
        if stay is not None and self.threads.number_of(stay):
            self._join(self.groups, at + 1, stay)
        if not self.threads.number_of(go):
            return
        if instruction.opcode in ENDS:
            self.ended[go] = True
        else:
            self._join(self.groups, self.program.kernel.labels[instruction.operands[0]], go)

    def _split(self, guard: Any, instruction: Instruction, who: Index) -> tuple[Index, Index]:
        true = guard(self.threads, who) != instruction.negated
        if true.all():
            return who, np.empty(0, np.int64)
        numbers = np.arange(self.threads.count) if who is ALL else who
        return numbers[true], numbers[~true]

    def _join(self, groups: dict[int, Index], at: int, who: Index) -> None:
        if at in groups:
            who = np.sort(np.concatenate([groups[at], who]))
        groups[at] = ALL if self.threads.number_of(who) == self.threads.count else who

    def _release(self) -> None:
        """Let the blocks go on of which every thread waits at one barrier; no other thread is left running."""
        if len(self.waiting) > 1:
            places: NDArray[Any] = np.concatenate([np.unique(self.threads.place[i]) for i in self.waiting.values()])
            if len(np.unique(places)) < len(places):
                raise BarrierFault(f"{self.program.kernel.name}: threads of a block wait at different barriers")
        at = min(self.waiting)
        who = self.waiting.pop(at)
        blocks = np.unique(self.threads.place[who])
        if (self.ended & np.isin(self.threads.place, blocks)).any():
            raise BarrierFault(f"{self.program.kernel.name}: a barrier that a part of a block has ended before")
        self._join(self.groups, at + 1, who)
