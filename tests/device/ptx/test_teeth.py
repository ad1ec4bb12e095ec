"""The interpreter notices what a GPU would not forgive, or would not say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from . import compilers
from .comparison import Case, compare
from .device import SHORT, PtxDevice, PtxUpdate
from .execution import BarrierFault, Program
from .memory import Memory, MemoryFault
from .parsing import PtxError, parse

ODD = Case("dpmpp_2m", (1, 4, 33, 17), steps=3)  # 2,244 values


def launched(case: Case, device: PtxDevice, kind: str, **changed: Any) -> None:
    """Launch one kernel of a case; ``pack`` and ``grid`` instead of what the geometry says, and fields of the state."""
    loop = case.loop(device)
    list(loop.run(case.plan, case.generators()))
    update = loop.update._prepared
    assert isinstance(update, PtxUpdate)
    pack, grid = changed.pop("pack", update.pack), changed.pop("grid", update.grid)
    state = update.state.copy()
    for name, value in changed.items():
        state[name] = value(state[name]) if callable(value) else value
    types = SHORT[case.sample] if kind == "begin" else f"{SHORT[case.sample]}_{SHORT[case.output]}"
    device.run(f"{kind}_{pack}_{types}", grid, state.tobytes())


@pytest.mark.parametrize(
    ("case", "changed", "message"),
    [
        (Case("dpmpp_2m", (2, 3, 7, 5), steps=2), {"pack": 4}, "not aligned"),  # 105 values an image
        (Case(shape=(1, 4, 32, 32), channels=5), {"stride": lambda v: v - 1022}, "not aligned"),
        (Case(), {"x": lambda v: v + 4}, "not aligned"),
        (Case(sample="float16"), {"input": lambda v: v + 4}, "not aligned"),
        (ODD, {"x": lambda v: v + 2}, "not aligned"),
        (ODD, {"x": lambda v: v + 4}, "outside of every buffer"),
        (ODD, {"size": lambda v: v + 1}, "outside of every buffer"),
        (ODD, {"batch": 2}, "outside of every buffer"),
        (ODD, {"header": 0}, "outside of every buffer"),
        (ODD, {"stride": lambda v: v + 1}, "outside of every buffer"),
    ],
)
def test_wrong_launches_are_faults(
    any_programs: Mapping[str, Program], case: Case, changed: dict[str, Any], message: str
) -> None:
    launched(case, case.device(any_programs), "begin")  # the right one is none
    with pytest.raises(MemoryFault, match=message):
        launched(case, case.device(any_programs), "begin", **changed)


def test_a_short_buffer_is_a_fault(any_programs: Mapping[str, Program]) -> None:
    device = ODD.device(any_programs)
    loop = ODD.loop(device)
    run = loop.run(ODD.plan, ODD.generators())
    next(run)
    for name in ("x", "history", "x0", "input", "output"):
        address, nbytes = loop.memory[name]
        device.sizes[address] = nbytes - 4
        with pytest.raises(MemoryFault, match="outside of every buffer"):
            loop.update.step()
        device.sizes[address] = nbytes
    loop.update.step()


def changed_module(old: str, new: str, entry: str) -> dict[str, Program]:
    """The programs, of which one is made of changed text: the last ``old`` in it is ``new``."""
    text = next(compilers.compiled(name) for name in compilers.COMPILERS if _is_here(name))
    start = text.index(f".entry {entry}(")
    end = text.index("\n}", start)
    assert old in text[start:end], (entry, old)
    at = text.rindex(old, start, end)
    made = text[:at] + new + text[at + len(old) :]
    return {name: Program(kernel) for name, kernel in parse(made).items()}


def _is_here(name: str) -> bool:
    try:
        compilers.compiled(name)
    except compilers.NoCompiler:
        return False
    return True


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("add.rn.f32", "sub.rn.f32"),
        ("setp.eq.f32", "setp.ne.f32"),
        ("atom.global.add.u32", "atom.global.or.b32"),
        ("rem.s32", "div.s32"),
    ],
)
def test_one_wrong_instruction_is_noticed(any_programs: Mapping[str, Program], old: str, new: str) -> None:
    case = Case("unipc_3")
    programs = changed_module(old, new, "step_4_f32_f32")
    with pytest.raises((AssertionError, MemoryFault)):
        compare(case, case.device(programs))


@pytest.mark.usefixtures("any_programs")
@pytest.mark.parametrize("rounded", ["add.rn.f32", "mul.rn.f32"])
def test_a_sum_or_product_that_may_be_fused_is_refused(rounded: str) -> None:
    with pytest.raises(PtxError, match="may be fused"):
        changed_module(rounded, rounded.replace(".rn", ""), "step_1_f16_f16")


@pytest.mark.usefixtures("any_programs")
@pytest.mark.parametrize("opcode", ["ld.local.f32", "vote.sync.any.pred", "call.uni", "ld.volatile.global.f32"])
def test_an_unknown_instruction_is_refused(opcode: str) -> None:
    with pytest.raises(PtxError, match="is known here"):
        changed_module("ld.global.f32", opcode, "step_1_f32_f32")


HALF_WAITS = """
.entry waiting(.param .u64 out)
{
 .reg .pred %p<2>;
 .reg .b32 %r<3>;
 .reg .b64 %rd<3>;
 mov.u32 %r1, %tid.x;
 setp.lt.u32 %p1, %r1, 16;
 @%p1 BRANCH;
 bar.sync 0;
$DONE:
 ld.param.u64 %rd1, [out];
 mul.wide.u32 %rd2, %r1, 4;
 add.s64 %rd2, %rd1, %rd2;
 st.global.u32 [%rd2], %r1;
 ret;
}
"""


def test_a_barrier_that_not_all_reach_is_a_fault() -> None:
    def run(branch: str) -> np.ndarray:
        out = np.zeros(36, np.uint32)
        out = out[-out.ctypes.data % 16 // 4 :][:32]
        program = Program(parse(HALF_WAITS.replace("BRANCH", branch))["waiting"])
        program.launch((1, 1), out.ctypes.data.to_bytes(8, "little"), Memory({"out": out}), 32)
        return out

    with pytest.raises(BarrierFault, match="ended before"):
        run("ret")
    with pytest.raises(BarrierFault, match="ended before"):
        run("bra $DONE")
