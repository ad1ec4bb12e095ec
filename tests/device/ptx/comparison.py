"""A device loop on interpreted kernels, held against the host loop, which is NumPy's arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from edgediff.device.host import HostDevice
from edgediff.device.loop import DeviceLoop
from edgediff.sampling import kernels
from edgediff.sampling import loop as host
from edgediff.sampling.planning import Plan, plan
from edgediff.sampling.rng import Generator, TorchCpuGenerator
from edgediff.sampling.schedule import Schedule

from ...support.host_device import DTYPES, narrowed, view
from ...support.replay import Replay, Shape
from .device import PtxDevice
from .execution import Program

EXTRA = 0.5  # in the input's channels beyond the state's, which no kernel may change


@dataclass
class Case:
    """A case is a run: sampler, guidance, shape, types, and the GPU whose grids are walked."""

    sampler: str = "dpmpp_2m"
    shape: Shape = (1, 4, 32, 32)
    channels: int | None = None
    sample: str = "float32"
    output: str = "float32"
    timestep: str = "float32"
    steps: int = 4
    multiprocessors: int = 2  # 4,096 values are four a thread
    generator: type[Generator] = TorchCpuGenerator
    guidance: Mapping[str, Any] = field(default_factory=lambda: {"guidance_scale": 7.5})

    @property
    def plan(self) -> Plan:
        return plan(Schedule(), self.sampler, self.steps, **self.guidance)

    def generators(self) -> list[Generator]:
        return [self.generator(seed) for seed in range(7, 7 + self.shape[0])]  # type: ignore[call-arg]

    def device(self, programs: Mapping[str, Program], **given: Any) -> PtxDevice:
        return PtxDevice(programs, self.multiprocessors, **given)

    def loop(self, device: HostDevice, model: Replay | None = None) -> DeviceLoop:
        """A loop of exactly the room that the plan takes, so that what is beyond is outside of every buffer."""
        table = self.plan
        loop = DeviceLoop(
            device,
            Replay(device, self.shape, self.output) if model is None else model,
            self.shape,
            channels=self.channels,
            rows=len(table.rows),
            depth=table.depth,
            sample_type=self.sample,
            output_type=self.output,
            timestep_type=self.timestep,
        )
        view(loop.sample)[:] = EXTRA
        return loop


def host_steps(case: Case, model: Replay) -> list[host.LoopStep]:
    """The host loop's steps with the same model and noise, by NumPy alone."""
    streams = case.generators()

    def draw() -> NDArray[np.float32]:
        return np.concatenate([s.randn((1, *case.shape[1:])) for s in streams])

    model.call = 0
    with patch.object(kernels, "find_package", lambda: kernels.KernelPackage(None, "NumPy is the reference here")):
        return list(host.run(case.plan, model.denoise, case.plan.start * draw(), draw))


def compare(case: Case, device: PtxDevice, tolerance: float = 0.0) -> float:
    """Hold every state, estimate, input and timestep of a run against the host loop's.

    Args:
        tolerance: of the largest value; 0 asks for the same bits.

    Returns:
        The largest difference, as a part of the largest value.
    """
    model = Replay(device, case.shape, case.output)
    expected = host_steps(case, model)
    model.call = 0
    loop, table, worst = case.loop(device, model), case.plan, 0.0
    copies = 2 * case.shape[0] if table.guided else case.shape[0]
    for k, (step, known) in enumerate(zip(loop.run(table, case.generators()), expected, strict=True)):
        for made, right in ((step.after, known.after), (step.x0(), known.x0())):
            worst = max(worst, float(np.abs(made - right).max() / np.abs(right).max()))
            np.testing.assert_allclose(made, right, rtol=0, atol=tolerance * np.abs(right).max())
        given = view(loop.sample)[:copies]
        again = [narrowed(step.after, case.sample)] * (copies // case.shape[0])
        np.testing.assert_array_equal(given[:, : case.shape[1]], np.concatenate(again))
        assert (given[:, case.shape[1] :] == EXTRA).all()
        if k + 1 < len(table.rows):
            told = np.float32(table.rows[k + 1].t).astype(DTYPES[case.timestep])
            assert (view(loop.timestep)[:copies] == told).all()
    loop.close()
    model.close()
    return worst
