"""What GPUs leave open: the order of blocks, and what one block sees of another."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from edgediff.sampling.kernel_layout import HEADER
from edgediff.sampling.rng import TorchCudaGenerator

from .comparison import Case
from .device import PtxDevice, shuffled
from .execution import Program

CASES = {
    "many images": Case("dpmpp_2m", (3, 4, 33, 17), sample="float16", output="float16", steps=3),
    "four a thread": Case("unipc_3", (2, 4, 32, 32), sample="float16", steps=3),
    "noise": Case("euler_a", (2, 4, 32, 32), output="float16", steps=3, generator=TorchCudaGenerator),
}


def ends(case: Case, device: PtxDevice) -> list[bytes]:
    """All of the device's memory, after each step."""
    loop = case.loop(device)
    return [device.everything() for _ in loop.run(case.plan, case.generators())]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_the_order_of_blocks_is_of_no_matter(any_programs: Mapping[str, Program], case: Case, seed: int) -> None:
    """Each block runs to its end before the next begins, in an order of chance; the bits are those of lockstep."""
    apart = case.device(any_programs, order=shuffled(seed))
    assert ends(case, apart) == ends(case, case.device(any_programs))


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_blocks_share_a_counter_and_the_step(any_programs: Mapping[str, Program], case: Case) -> None:
    """Where one block writes what another reads, they must agree on an order: it is two words, by design."""
    device = case.device(any_programs)
    device.traces = {}
    loop = case.loop(device)
    list(loop.run(case.plan, case.generators()))
    shared = {}
    for entry, trace in device.traces.items():
        assert trace.touched > 0
        if found := trace.shared():
            shared[entry.split("_")[0]] = found
    words = {
        offset for name in ("step", "done") for offset in range(HEADER.fields[name][1], HEADER.fields[name][1] + 4)
    }
    address, nbytes = loop.memory["header"]
    assert {kind: {name: set(offsets) for name, offsets in found.items()} for kind, found in shared.items()} == {
        "step": {f"{nbytes} bytes at {address:#x}": words}
    }
