"""What a run of the device loop asks of the driver: each call costs the host time, and a wait costs all of it."""

from __future__ import annotations

from edgediff.device.loop import DeviceLoop
from edgediff.sampling.planning import plan
from edgediff.sampling.rng import TorchCudaGenerator
from edgediff.sampling.schedule import Schedule

from .stub.library import Stub
from .stub.on_stub import on_stub
from .test_cuda_kernels import SHAPE, Empty, opened

STEPS = 20
PREPARATION = 4  # calls at most: the header, the seeds, the rows where they are new, and the first launch


@on_stub()
def test_a_step_is_a_launch_and_what_keeps_the_host_near(stub: Stub) -> None:
    loop = DeviceLoop(opened(), Empty(), SHAPE, rows=STEPS, sample_type="float16", output_type="float16")
    table = plan(Schedule(), "dpmpp_2m", STEPS, 7.5)
    for ahead, calls in (
        (None, ["cuGraphLaunch"]),
        (2, ["cuEventSynchronize", "cuGraphLaunch", "cuEventRecord"]),
    ):
        for seed in range(2):  # captures, and makes the events
            list(loop.run(table, [TorchCudaGenerator(seed)], ahead=ahead))
        stub.clear()
        steps = loop.run(table, [TorchCudaGenerator(7)], ahead=ahead)
        for _ in zip(range(2), steps, strict=False):
            pass
        begun = [name for name in stub.names if name not in ("cuGraphLaunch", "cuEventRecord", "cuEventCreate")]
        assert set(begun) == {"cuMemcpyHtoDAsync", "cuLaunchKernel"}
        assert len(begun) <= PREPARATION
        assert stub.count("cuEventCreate") <= (ahead or 0)  # for those that nobody waited for at the end of a run
        stub.clear()
        list(steps)
        assert [name for name in stub.names if name != "cuEventDestroy"] == calls * (STEPS - 2)
    assert not stub.faults
    loop.close()


@on_stub()
def test_a_loop_without_a_bound_never_waits(stub: Stub) -> None:
    loop = DeviceLoop(opened(), Empty(), SHAPE, rows=STEPS)
    stub.clear()
    stub.late()
    for sampler in ("dpmpp_2m", "euler_a"):
        list(loop.run(plan(Schedule(), sampler, STEPS, 7.5), [TorchCudaGenerator(1)]))
    assert not [name for name in stub.names if "Synchronize" in name]
    stub.late(False)
    loop.device.trim()
    loop.close()
    assert not stub.faults
