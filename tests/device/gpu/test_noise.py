"""Noise that the kernels draw on a GPU, beside ``torch.randn`` on the same GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from edgediff.device.cuda import CudaDevice
from edgediff.device.loop import DeviceLoop
from edgediff.sampling.planning import Plan
from edgediff.sampling.rng import TorchCudaGenerator
from edgediff.sampling.schedule import CLEAN
from edgediff.sampling.update import Row

from ...support.device_checks import NOISY
from ...support.replay import Replay, Shape

pytestmark = pytest.mark.gpu


def row(**given: float) -> Row:
    """A row that does nothing but what is given."""
    nothing: dict[str, Any] = dict.fromkeys((column.name for column in fields(Row)), 0.0)
    return Row(**(nothing | {"w": (), "guided": False, "scale": 1.0} | given))


def two_draws() -> Plan:
    """A plan whose first row keeps the first state, and whose second gives the next draw."""
    rows = row(a=1.0), row(d=1.0)
    return Plan("ddim", "custom", 1.0, (CLEAN,) * 3, rows, 1.0, 0, 2)


@pytest.mark.parametrize("begun", [False, True], ids=["at-the-start", "where-a-draw-has-left-it"])
@pytest.mark.parametrize("seed", [0, 42, 2**40 + 5, 2**64 - 1])
@pytest.mark.parametrize("shape", [(1, 4, 64, 64), (1, 4, 128, 128), (1, 16, 256, 256), "two-rounds"], ids=str)
def test_torch_draws_the_same(
    gpu: CudaDevice, shape: Shape | str, seed: int, begun: bool, record_property: Callable[[str, object], None]
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} sees no CUDA device")
    size = gpu.multiprocessors, gpu.threads_per_multiprocessor
    if isinstance(shape, str):  # more than each of the GPU's threads draws in one round
        shape = (1, 4 * TorchCudaGenerator(0, *size).place(2**28)[0] // 65536 + 2, 256, 256)
    theirs = torch.Generator("cuda").manual_seed(seed if seed < 2**63 else seed - 2**64)
    ours = TorchCudaGenerator(seed, *size)
    if begun:
        torch.randn(shape, generator=theirs, device="cuda")
        ours.randn(shape)
    model = Replay(gpu, shape, "float16", fixed=True)
    loop = DeviceLoop(gpu, model, shape, rows=2, depth=0, previews=False)
    equal = 0
    for step in loop.run(two_draws(), [ours]):
        expected = torch.randn(shape, generator=theirs, device="cuda").cpu().numpy()
        assert np.abs(step.after - expected).max() <= NOISY
        equal += np.array_equal(step.after, expected)
    record_property("bit_equal", f"{equal} of 2")
    loop.close()
    model.close()
