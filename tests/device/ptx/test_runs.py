"""Whole runs on the interpreted kernels: without noise of their own, every bit is NumPy's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from edgediff.device.array import Block
from edgediff.device.host_kernels import HostKernels
from edgediff.image import to_uint8
from edgediff.sampling.kernel_layout import HEADER, NOT_BAD

from ...support.host_device import DTYPES, narrowed, widened
from .comparison import Case, compare
from .device import PtxDevice
from .execution import Program

OFF = {"guidance_scale": 1.0}
INTERVAL = {"guidance_scale": 4.0, "guidance_interval": (0.25, 0.75)}
HALF = {"sample": "float16", "output": "float16"}
MANY = 132  # multiprocessors: one value a thread
WHOLE = {
    "half": Case("dpmpp_2m", (1, 4, 64, 64), **HALF),
    "odd": Case("unipc_3", (2, 3, 7, 5), timestep="int64", guidance=INTERVAL),
    "mixed": Case("deis_3", (3, 4, 33, 17), output="float16", timestep="float16"),
    "unguided": Case("plms", (4, 4, 16, 16), sample="float16", guidance=OFF),
    "extra channels": Case("lms", (2, 4, 32, 32), channels=9, **HALF),
    "extra channels, one a thread": Case("lms", (2, 4, 15, 15), channels=9, guidance=INTERVAL),
    "strides": Case("dpmpp_2m", (5, 4, 64, 64), multiprocessors=1, guidance=INTERVAL),
    "strides, one a thread": Case("unipc_3", (2, 3, 47, 31), multiprocessors=1, steps=3),
    "many blocks": Case("lms", (1, 4, 64, 64), multiprocessors=MANY, **HALF),
    "one value": Case("euler", (1, 1, 1, 1), guidance=OFF),
    "noise of the host": Case("dpmpp_2m_sde", (2, 4, 32, 32), **HALF),
}


@pytest.mark.parametrize("case", WHOLE.values(), ids=list(WHOLE))
def test_whole_runs_have_the_host_loops_bits(programs: Mapping[str, Program], case: Case) -> None:
    compare(case, case.device(programs))


@pytest.mark.parametrize("case", WHOLE.values(), ids=list(WHOLE))
def test_memory_is_the_host_twins(any_programs: Mapping[str, Program], case: Case) -> None:
    """Header, rows, state, history, estimate and the model's tensors, after each step."""
    pytest.importorskip("edgediff_kernels", reason="edgediff-kernels is not installed")
    device, twin = case.device(any_programs), PtxDevice({}, other=HostKernels())
    loops = case.loop(device), case.loop(twin)
    for _ in zip(*(loop.run(case.plan, case.generators()) for loop in loops), strict=True):
        for name in ("rows", "x", "history", "x0", "input", "output", "timestep", "header"):
            if name == "history" and not case.plan.depth:
                continue
            one, other = (d.contents(*loop.memory[name]) for d, loop in zip((device, twin), loops, strict=True))
            if name == "header":
                one, other = one.view(HEADER).copy(), other.view(HEADER).copy()
                one["noise"] = other["noise"] = 0  # an address
            np.testing.assert_array_equal(one, other, name)


def unscaled(device: PtxDevice, dtype: str) -> None:
    x = np.random.default_rng(1).standard_normal(1000).astype(np.float32) * np.float32(30)
    z = np.zeros(1000, DTYPES[dtype])
    given, made = (Block(device.allocate(v.nbytes), v.nbytes) for v in (x, z))
    device.upload(given.address, x)
    device.kernels.unscale(given, made, dtype, x.size, 0.18215, 0.1)
    device.download(made.address, z)
    np.testing.assert_array_equal(z, narrowed(x / np.float32(0.18215) + np.float32(0.1), dtype))


def drawn(device: PtxDevice, dtype: str, broken: float = 0.0) -> int:
    """What was bad in pictures of 2 images, of which every byte is held against the host's."""
    images, area = 2, 37 * 11
    decoded = np.random.default_rng(2).standard_normal((images, 3, area)).astype(np.float32)
    decoded[0, 0, :8] = [-1, 1, -1.5, 1.5, 0, 1 / 255, -1 / 255, broken]
    decoded = narrowed(decoded, dtype)
    pixels, header = np.zeros((images, area, 3), np.uint8), np.zeros(1, HEADER)
    blocks = [Block(device.allocate(v.nbytes), v.nbytes) for v in (decoded, pixels, header)]
    device.upload(blocks[0].address, decoded)
    device.kernels.to_uint8(*blocks, dtype, images, area)
    device.download(blocks[1].address, pixels)
    device.download(blocks[2].address, header)
    wide = widened(decoded)
    right = to_uint8(np.where(np.isfinite(wide), wide, np.float32(0)).reshape(images, 3, area, 1))[:, :, 0]
    np.testing.assert_array_equal(np.delete(pixels[0], 7, 0), np.delete(right[0], 7, 0))
    np.testing.assert_array_equal(pixels[1], right[1])
    return int(header["bad_what"][0])


def test_every_kernel_that_ships_is_run(programs: Mapping[str, Program]) -> None:
    """Every pair of types, one value and four a thread, and both ends; no entry is left out."""
    ran = set()
    for sample in ("float32", "float16"):
        for output in ("float32", "float16"):
            for multiprocessors in (2, MANY):
                case = Case(sample=sample, output=output, multiprocessors=multiprocessors, steps=3)
                device = case.device(programs)
                compare(case, device)
                ran |= device.ran
        device = PtxDevice(programs)
        unscaled(device, sample)
        assert drawn(device, sample) == 0
        ran |= device.ran
    assert ran == set(programs)
    assert len(ran) == 16


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_not_finite_are_noted(any_programs: Mapping[str, Program], dtype: str, value: float) -> None:
    assert drawn(PtxDevice(any_programs), dtype, value) == 4


@pytest.mark.parametrize("multiprocessors", [2, MANY])
@pytest.mark.parametrize(("what", "expected"), [("output", 1), ("state", 2)])
def test_the_first_step_that_is_not_finite_is_noted(
    programs: Mapping[str, Program], what: str, expected: int, multiprocessors: int
) -> None:
    case = Case(sample="float16", output="float16", multiprocessors=multiprocessors)
    device = case.device(programs)
    loop = case.loop(device)
    model, update, found = loop.model, loop.update, []
    for k, _ in enumerate(loop.run(case.plan, case.generators())):
        header = np.zeros(1, HEADER)
        device.download(loop.memory["header"].address, header)
        found.append((int(header["bad_step"][0]), int(header["bad_what"][0])))
        if k == 0 and what == "output":
            model.memory[1, 0, 0, 3, 1, 2] = np.nan  # type: ignore[attr-defined]
            device.upload(model.address, model.memory)  # type: ignore[attr-defined]
        elif k == 0:
            x = update.fetch("x", update.version)
            x[0, 3, 1, 2] = np.inf
            device.upload(update.state.address, x)
    assert found == [(NOT_BAD, 0)] + [(1, expected)] * 3  # and none that follow from it


def test_a_launch_too_many_changes_nothing(programs: Mapping[str, Program]) -> None:
    case = Case(shape=(2, 4, 32, 32))
    device = case.device(programs)
    loop = case.loop(device)
    list(loop.run(case.plan, case.generators()))
    before = device.everything()
    for _ in range(2):
        loop.update.step()
    assert device.everything() == before


def test_a_second_run_begins_anew(any_programs: Mapping[str, Program]) -> None:
    """The header's counters and the history's ring carry nothing over."""
    case = Case("unipc_3")
    device = case.device(any_programs)
    loop = case.loop(device)
    ends = []
    for _ in range(2):
        loop.model.call = 0  # type: ignore[attr-defined]
        *_, last = loop.run(case.plan, case.generators())
        ends.append(last.after)
    np.testing.assert_array_equal(*ends)
