"""The kernels' launches on a GPU, by the real cuda-core on a stub driver: which, over which grid, of what arguments."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgediff.device.array import Block
from edgediff.device.cuda import CudaDevice
from edgediff.device.cuda import kernels as cuda_kernels
from edgediff.device.cuda.kernels import Launch
from edgediff.device.cuda.machine_code import KernelCode, kernel_codes
from edgediff.device.cuda.nvrtc import compile_kernels, nvrtc_version
from edgediff.device.geometry import Geometry
from edgediff.device.loop import DeviceLoop
from edgediff.errors import ArgumentError, EngineError
from edgediff.sampling.kernel_layout import BUFFERS, STATE
from edgediff.sampling.planning import plan
from edgediff.sampling.rng import TorchCudaGenerator
from edgediff.sampling.schedule import Schedule

from .stub.library import Stub
from .stub.on_stub import on_stub

WIDTHS = {"u64": 8, "s64": 8, "b64": 8, "u32": 4, "f32": 4}
SHAPE = (1, 4, 64, 64)


@cache
def opened() -> CudaDevice:
    """A device whose kernels are compiled once for the tests of a child."""
    try:
        nvrtc_version()
    except EngineError as error:
        pytest.skip(str(error))
    device = CudaDevice(0, Path(tempfile.gettempdir(), "edgediff-tests"))
    assert device.kernels is not None
    return device


def room(device: CudaDevice, geometry: Geometry) -> dict[str, Block]:
    return {name: Block(device.allocate(n), n) for name, (_, n) in geometry.needs.items() if n}


def launched(stub: Stub) -> list[tuple[str, str, str]]:
    found = [call.details for call in stub.calls if call.name == "cuLaunchKernel"]
    return [(one["name"], one["grid"], one["block"]) for one in found]


class Empty:
    capture, warm_runs, key = "always", 1, 0

    def enqueue(self, *arguments: Any) -> None:
        pass


@on_stub()
def test_each_geometry_has_its_kernel(stub: Stub) -> None:
    device = opened()
    for size, grid, pack in ((100, "1,2,1", 1), (1 << 20, "1024,1,1", 4), ((1 << 20) + 1, "1056,1,1", 1)):
        for given in ("float32", "float16"):
            for made in ("float32", "float16"):
                geometry = Geometry(2, size, size, 1, 4, 2, given, made)
                buffers = room(device, geometry)
                stub.clear()
                update = device.kernels.update(geometry, buffers)
                update.begin()
                update.step()
                first, second = (dtype.replace("float", "f") for dtype in (given, made))
                names = f"begin_{pack}_{first}", f"step_{pack}_{first}_{second}"
                assert launched(stub) == [(name, grid, "256,1,1") for name in names]
                for block in buffers.values():
                    device.free(block.address)
    assert not stub.faults


@on_stub()
def test_the_ends(stub: Stub) -> None:
    device = opened()
    x = Block(device.allocate(1 << 20), 1 << 20)
    stub.clear()
    device.kernels.unscale(x, x, "float16", 1000, 2.0, 0.5)
    device.kernels.to_uint8(x, x, x, "float32", 2, 300)
    assert launched(stub) == [("unscale_f16", "4,1,1", "256,1,1"), ("pixels_f32", "3,1,1", "256,1,1")]
    for call in (
        lambda: device.kernels.unscale(x, x, "int64", 1000, 2.0, 0.5),
        lambda: device.kernels.to_uint8(x, x, x, "float32", 2, 1 << 20),
        lambda: device.kernels.update(Geometry(1, 4, 4, 0, 1, 1), {}),
    ):
        with pytest.raises(ArgumentError):
            call()
    device.free(x.address)
    assert not stub.faults


@on_stub()
def test_arguments_have_the_sizes_that_the_kernels_take(stub: Stub) -> None:
    """A launch hands over addresses of values, whose sizes nobody checks but this."""
    device = opened()
    held: dict[str, list[int]] = {}
    patch = pytest.MonkeyPatch()

    class Seen(Launch):
        def __init__(self, kernels: Any, function: Any, grid: tuple[int, int], *arguments: Any) -> None:
            super().__init__(kernels, function, grid, *arguments)
            name = next(name for name, known in kernels._functions.items() if known is function)
            held[name] = [value.nbytes for value in self._held]
            assert list(self._places) == [value.ctypes.data for value in self._held]

    patch.setattr(cuda_kernels, "Launch", Seen)
    x = Block(device.allocate(1 << 20), 1 << 20)
    for dtype in ("float32", "float16"):
        device.kernels.unscale(x, x, dtype, 1000, 2.0, 0.5)
        device.kernels.to_uint8(x, x, x, dtype, 2, 300)
        for made in ("float32", "float16"):
            for size in (100, 1 << 20):
                geometry = Geometry(1, size, size, 0, 4, 2, dtype, made)
                device.kernels.update(geometry, dict.fromkeys(BUFFERS, Block(x.address, 1 << 40)))
    patch.undo()
    ptx = compile_kernels("compute_75").decode()
    taken = {}
    for name, parameters in re.findall(r"\.entry (\w+)\((.*?)\)", ptx, re.S):
        sizes = re.findall(r"\.param (?:\.align \d+ )?\.(\w+)(?: \.ptr[^,\n]*?)? \w+(?:\[(\d+)\])?", parameters)
        taken[name] = [int(size) if size else WIDTHS[kind] for kind, size in sizes]
    assert held == taken
    assert taken["step_4_f16_f32"] == [STATE.itemsize]
    assert len(taken) == 16
    device.free(x.address)


@on_stub()
def test_a_loop_launches_a_graph_a_step(stub: Stub) -> None:
    device = opened()
    loop = DeviceLoop(device, Empty(), SHAPE, rows=20, sample_type="float16", output_type="float16")
    rows = plan(Schedule(), "dpmpp_2m", 20, 7.5)
    for turn in range(2):
        stub.clear()
        list(loop.run(rows, [TorchCudaGenerator(turn)]))
        ran = [line.removeprefix("runs ").split("<")[0] for line in stub.lines if line.startswith("runs ")]
        kernels = [name for name in ran if name.startswith(("begin", "step"))]
        assert kernels == ["begin_1_f16"] + ["step_1_f16_f16"] * 20
        assert [name for name, *_ in launched(stub)] == ["begin_1_f16"] + ["step_1_f16_f16"] * (2 if turn == 0 else 0)
    assert stub.count("cuGraphLaunch") == 20
    loop.close()
    assert not stub.faults


@on_stub(alone=True)
def test_code_that_the_driver_refuses_gives_way_to_the_next(stub: Stub) -> None:
    device = opened()
    first, second = kernel_codes(device.compute_capability, device.driver_version, device.cache_folder)
    if not isinstance(first, KernelCode):
        pytest.skip(str(first))
    stub.fail("cuLibraryLoadData", code=218, times=1)  # CUDA_ERROR_INVALID_PTX
    other = CudaDevice(0, device.cache_folder)
    assert isinstance(second, KernelCode)
    assert other.kernels.origin == second.origin  # type: ignore[attr-defined]
    stub.fail("cuLibraryLoadData", code=218)
    with pytest.raises(EngineError, match=r"no CUDA kernels for Stub GPU 0: edgediff-kernels, by.*218.*; NVRTC .*218"):
        CudaDevice(0, device.cache_folder).kernels  # noqa: B018


@on_stub()
def test_a_launch_that_fails_is_typed(stub: Stub) -> None:
    device = opened()
    geometry = Geometry(1, 100, 100, 0, 4, 2)
    update = device.kernels.update(geometry, room(device, geometry))
    stub.fail("cuLaunchKernel", code=700)
    failing: list[Callable[[], None]] = [update.begin, update.step]
    for call in failing:
        with pytest.raises(EngineError, match="cuLaunchKernel gave CUDA_ERROR_ILLEGAL_ADDRESS"):
            call()
    stub.clear()
    update.step()
    stub.fail("cuLibraryGetKernel")
    x = Block(device.allocate(1 << 10), 1 << 10)
    device.kernels._functions.pop("unscale_f32", None)  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match=r"kernel unscale_f32 .* cannot be loaded"):
        device.kernels.unscale(x, x, "float32", 10, 1.0, 0.0)


@on_stub(alone=True)
def test_kernels_go_with_their_device(stub: Stub) -> None:
    device = opened()
    geometry = Geometry(1, 100, 100, 0, 4, 2)
    kernels = device.kernels
    update = kernels.update(geometry, room(device, geometry))
    device.close()
    stub.clear()
    for call in (update.step, lambda: kernels.unscale(Block(256, 64), Block(256, 64), "float32", 2, 1.0, 0.0)):
        with pytest.raises(EngineError, match="the device is closed"):
            call()
    with pytest.raises(EngineError, match="the device is closed"):
        device.kernels  # noqa: B018
    assert not stub.names
    assert np.uint64(0) == device.stream
