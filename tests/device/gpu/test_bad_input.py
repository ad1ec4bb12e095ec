"""What is wrong is refused with a typed error, and the GPU goes on working."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from edgediff.device.array import Block
from edgediff.device.base import PreparedUpdate
from edgediff.device.cuda import CudaDevice
from edgediff.device.geometry import Geometry
from edgediff.device.loop import DeviceLoop
from edgediff.errors import ArgumentError, EngineError
from edgediff.sampling.kernel_layout import BUFFERS
from edgediff.sampling.planning import plan
from edgediff.sampling.rng import TorchCpuGenerator
from edgediff.sampling.schedule import Schedule

from ...support.device_checks import EXACT, STEPS
from ...support.replay import CALLS, Replay, Shape, largest_error, on_host

pytestmark = pytest.mark.gpu

ROOM = 1 << 16  # bytes of each buffer
SHAPE: Shape = (1, 4, 16, 16)


@pytest.fixture(scope="module")
def buffers(gpu: CudaDevice) -> Iterator[dict[str, Block]]:
    """A buffer of each kind, on the GPU."""
    made = {name: Block(gpu.allocate(ROOM), ROOM) for name in BUFFERS}
    yield made
    for address, _ in made.values():
        gpu.free(address)


@pytest.fixture
def update(gpu: CudaDevice, buffers: dict[str, Block]) -> Callable[..., PreparedUpdate]:
    """Prepare an update of good buffers, of which some are changed."""

    def prepare(**others: Block) -> PreparedUpdate:
        return gpu.kernels.update(Geometry(1, 1024, 1024, 1, 4, 2), buffers | others)

    return prepare


def test_good_arguments_pass(update: Callable[..., PreparedUpdate], gpu: CudaDevice) -> None:
    update().begin()
    gpu.wait(gpu.mark())


def test_buffers(update: Callable[..., PreparedUpdate], buffers: dict[str, Block]) -> None:
    address = buffers["x"].address
    for buffer, message in (
        (Block(0, ROOM), "must be an address"),
        (Block(address, 16), "needs"),
        (Block(address + 1, ROOM // 2), "aligned"),
    ):
        with pytest.raises(ArgumentError, match=message):
            update(x=buffer)


@pytest.mark.usefixtures("gpu")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ArgumentError, match="this machine has"):
        CudaDevice(99)


def test_nan_from_the_model_is_named_and_the_device_goes_on(gpu: CudaDevice) -> None:
    model, broken = Replay(gpu, SHAPE, "float32"), Replay(gpu, SHAPE, "float32")
    broken.memory[3] = np.nan
    gpu.upload(broken.address, broken.memory)
    loop = DeviceLoop(gpu, broken, SHAPE, rows=CALLS)
    with pytest.raises(ArgumentError, match="this loop has room for 16"):
        loop.run(plan(Schedule(), "ddim", 40), [TorchCpuGenerator(0)])
    table = plan(Schedule(), "dpmpp_2m", STEPS, 7.5)
    *_, last = loop.run(table, [TorchCpuGenerator(0)])
    with pytest.raises(EngineError, match="unet, step 4,"):
        last.after  # noqa: B018
    loop.model = model
    expected = on_host(table, model, SHAPE, [TorchCpuGenerator(0)])
    model.call = 0
    *_, last = loop.run(table, [TorchCpuGenerator(0)])
    assert largest_error(last.after, expected.after) <= EXACT
    loop.close()
    for each in (model, broken):
        each.close()
