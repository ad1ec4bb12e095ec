"""What is wrong is refused with a typed error, and the GPU goes on working."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from edgediff.device.cuda import CudaDevice
from edgediff.device.loop import DeviceLoop
from edgediff.errors import ArgumentError, EngineError
from edgediff.sampling.kernels import require_package
from edgediff.sampling.planning import plan
from edgediff.sampling.rng import TorchCpuGenerator
from edgediff.sampling.schedule import Schedule

from ...support.device_checks import EXACT, STEPS
from ...support.replay import CALLS, Replay, Shape, largest_error, on_host

pytestmark = pytest.mark.gpu

ROOM = 1 << 16  # bytes of each buffer
BUFFERS = ("header", "rows", "seeds", "x", "history", "output", "input", "timestep")
SHAPE: Shape = (1, 4, 16, 16)
Buffer = tuple[int, int]  # address and bytes
HOST_MEMORY = np.zeros(ROOM, np.uint8)
HOST: Buffer = ((HOST_MEMORY.ctypes.data + 255) // 256 * 256, ROOM // 2)


@pytest.fixture(scope="module")
def buffers(gpu: CudaDevice) -> Iterator[dict[str, Buffer]]:
    """A buffer of each kind, on the GPU."""
    made = {name: (gpu.allocate(ROOM), ROOM) for name in BUFFERS}
    yield made
    for address, _ in made.values():
        gpu.free(address)


@pytest.fixture
def update(buffers: dict[str, Buffer]) -> Callable[..., Any]:
    """Prepare an update of good arguments, of which some are changed."""
    arguments: dict[str, Any] = {"device": 0, "batch": 1, "size": 1024, "stride": 1024, "depth": 1, "rows": 4}
    arguments |= {"copies": 2, "input": "float32", "output": "float32", "timestep": "float32"}

    def prepare(change: dict[str, Any] | None = None, **others: Buffer) -> Any:
        return require_package().Update(**(arguments | (change or {})), buffers=buffers | others)

    return prepare


def test_good_arguments_pass(update: Callable[..., Any], gpu: CudaDevice) -> None:
    update().begin(gpu.stream)
    gpu.wait(gpu.mark())


@pytest.mark.parametrize("name", BUFFERS)
def test_host_memory(update: Callable[..., Any], name: str) -> None:
    with pytest.raises(ValueError, match="host memory"):
        update(**{name: HOST})


def test_buffers(update: Callable[..., Any], buffers: dict[str, Buffer]) -> None:
    address = buffers["x"][0]
    for buffer, message in (((0, ROOM), "null"), ((address, 16), "needs"), ((address + 1, ROOM // 2), "aligned")):
        with pytest.raises(ValueError, match=message):
            update(x=buffer)


def test_types_and_devices(update: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="choose from"):
        update({"output": "float8"})
    with pytest.raises(ValueError, match="this machine has"):
        update({"device": 99})
    with pytest.raises(ArgumentError, match="this machine has"):
        CudaDevice(99)


def test_pictures_in_host_memory(gpu: CudaDevice, buffers: dict[str, Buffer]) -> None:
    kernels, inside = require_package(), buffers["x"]
    common: dict[str, Any] = {"device": 0, "type": "float32", "stream": gpu.stream}
    with pytest.raises(ValueError, match="host memory"):
        kernels.unscale(x=HOST, z=inside, count=64, scale=1.0, shift=0.0, **common)
    with pytest.raises(ValueError, match="host memory"):
        kernels.to_uint8(decoded=inside, pixels=HOST, header=buffers["header"], images=1, area=64, **common)


def test_another_gpu(update: Callable[..., Any]) -> None:
    if require_package().device_count() < 2:
        pytest.skip("this machine has one GPU")
    other = CudaDevice(1)
    with pytest.raises(ValueError, match="belongs to device 1"):
        update().begin(other.stream)
    far = other.allocate(ROOM)
    with pytest.raises(ValueError, match="memory of device 1"):
        update(x=(far, ROOM))
    other.close()


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
