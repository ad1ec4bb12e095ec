"""Noise drawn by the interpreted kernels, against the generator that is held against torch's own values."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import pytest

from edgediff.device.array import DeviceArray
from edgediff.sampling.rng import TorchCudaGenerator

from ...support.host_device import view
from ...support.replay import Replay
from .comparison import Case, compare
from .execution import Program

# Of the largest value. What is drawn differs by some 4e-7 (the host's logarithm and sine are not the device's), times
# the level of noise.
TOLERANCE = 1e-6
SMALL = partial(TorchCudaGenerator, multiprocessors=1, threads_per_multiprocessor=256)  # 256 threads
RUNS = {
    "euler_a": Case("euler_a", (1, 4, 64, 64), generator=TorchCudaGenerator),
    "dpmpp_2m_sde": Case("dpmpp_2m_sde", (2, 4, 32, 32), timestep="int64", generator=TorchCudaGenerator),
    "one value a thread": Case("euler_a", (2, 3, 33, 17), generator=TorchCudaGenerator),
    "several rounds": Case("euler_a", (2, 4, 32, 48), generator=SMALL),
    "several rounds, one value a thread": Case("dpmpp_2m_sde", (1, 3, 31, 47), generator=SMALL),
}


@pytest.mark.parametrize("case", RUNS.values(), ids=list(RUNS))
def test_stochastic_runs(programs: Mapping[str, Program], case: Case) -> None:
    device = case.device(programs)
    worst = compare(case, device, TOLERANCE)
    assert worst > 0, "these bits were not drawn by the kernel"
    wanted = "4" if "one value" not in next(name for name, c in RUNS.items() if c is case) else "1"
    assert {name.split("_")[1] for name in device.ran} == {wanted}


class Look(Replay):
    """A model that keeps the first input that it is given."""

    def enqueue(self, sample: DeviceArray, timestep: DeviceArray, output: DeviceArray, stream: int) -> None:
        self.seen = view(sample)[:1].copy()
        super().enqueue(sample, timestep, output, stream)


@pytest.mark.parametrize("seed", [0, 2**63 + 11])
@pytest.mark.parametrize("made", [TorchCudaGenerator, SMALL], ids=["one turn", "many turns"])
def test_first_states(any_programs: Mapping[str, Program], seed: int, made: type[TorchCudaGenerator]) -> None:
    """One value and four a thread draw the same bits, which are the generator's but for the logarithm and the sine.

    Draws before these move the counter on.
    """
    states = []
    for multiprocessors in (2, 132):
        case = Case("euler", (1, 4, 32, 40), multiprocessors=multiprocessors)
        device = case.device(any_programs)
        model = Look(device, case.shape, case.output)
        loop, generator, same = case.loop(device, model), made(seed), made(seed)
        for g in (generator, same):
            g.randn((1, *case.shape[1:]))
        next(iter(loop.run(case.plan, [generator])))
        drawn = model.seen / np.float32(case.plan.start)
        np.testing.assert_allclose(drawn, same.randn(case.shape), rtol=0, atol=4e-6)
        states.append(model.seen)
        assert device.ran >= {f"begin_{4 if multiprocessors == 2 else 1}_f32"}
    np.testing.assert_array_equal(*states)


@pytest.mark.parametrize("multiprocessors", [1, 3, 16, 132])
@pytest.mark.parametrize("threads", [256, 1024, 1536, 2048, 2304])
def test_four_neighbours_lie_in_one_turn(multiprocessors: int, threads: int) -> None:
    """The kernels count on it: torch's threads come in blocks."""
    generator = TorchCudaGenerator(0, multiprocessors, threads)
    assert all(generator.place(size)[0] % 4 == 0 for size in (1, 3, 255, 257, 12_345, 1 << 20))
