"""Noise against torch's CUDA generator, and bad input. Used by ``benchmarks.kernel``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np

from benchmarks.kernel_checks import EXACT, NOISY, ROWS, STEPS, Replay, Shape, on_host, relative
from benchmarks.sections import Findings
from edgediff.device.cuda import CudaDevice
from edgediff.device.loop import DeviceLoop
from edgediff.errors import ArgumentError, EngineError
from edgediff.sampling.kernels import require_package
from edgediff.sampling.planning import Plan, plan
from edgediff.sampling.rng import TorchCpuGenerator, TorchCudaGenerator
from edgediff.sampling.schedule import CLEAN, Schedule
from edgediff.sampling.update import Row

SEEDS = (0, 42, 2**40 + 5)


def _bare(**given: float) -> Row:
    """A row that does nothing but what is given."""
    nothing: dict[str, Any] = dict.fromkeys((column.name for column in fields(Row)), 0.0)
    return Row(**(nothing | {"w": (), "guided": False, "scale": 1.0} | given))


def _bare_plan(*rows: Row) -> Plan:
    return Plan("ddim", "custom", 1.0, (CLEAN,) * (len(rows) + 1), rows, 1.0, 0, len(rows))


def philox(findings: Findings, device: CudaDevice) -> None:
    """C: noise drawn by the kernels against ``torch.randn`` on this GPU; torch's values for a test without one."""
    import torch

    size = device.multiprocessors, device.threads_per_multiprocessor
    grid = TorchCudaGenerator(0, *size).place(2**28)[0]
    shapes: list[Shape] = [(1, 4, 64, 64), (1, 4, 128, 128), (1, 16, 256, 256), (1, 4 * grid // 65536 + 2, 256, 256)]
    table = _bare_plan(_bare(a=1.0), _bare(d=1.0))  # the first state, then the next draw
    cases: list[dict[str, Any]] = []
    for shape in shapes:
        loop = DeviceLoop(device, Replay(device, shape, "float16", fixed=True), shape, rows=2, depth=0, previews=False)
        for seed in (*SEEDS, 2**64 - 1):
            theirs = torch.Generator("cuda").manual_seed(seed if seed < 2**63 else seed - 2**64)
            ours = TorchCudaGenerator(seed, *size)
            for begun in (0, 1):  # from the generator's start, and from where a draw has left it
                if begun:
                    theirs.manual_seed(seed if seed < 2**63 else seed - 2**64)
                    torch.randn(shape, generator=theirs, device="cuda")
                    ours.randn(shape)
                for draw, step in enumerate(loop.run(table, [ours])):
                    expected = torch.randn(shape, generator=theirs, device="cuda").cpu().numpy()
                    case: dict[str, Any] = {"shape": shape, "seed": seed, "begun": bool(begun), "draw": begun + draw}
                    case["error"] = float(np.abs(step.after - expected).max())
                    cases.append(case | {"bit_equal": np.array_equal(step.after, expected)})
        loop.close()
    findings.figures |= {"threads": grid, "cases": cases, "golden": _golden(torch)}
    for begun, name in enumerate(("its start", "where a draw has left it")):
        some = [case for case in cases if case["begun"] == begun]
        worst, equal = max(case["error"] for case in some), sum(case["bit_equal"] for case in some)
        detail = f"max error {worst:.2g}, {equal} of {len(some)} draws equal to the bit"
        findings.check(f"noise of torch's CUDA generator from {name}", worst <= NOISY, detail)


def _golden(torch: Any) -> list[dict[str, Any]]:
    out = []
    for seed in SEEDS:
        for shape in ((1, 4, 64, 64), (1, 4, 128, 128), (1, 16, 256, 256)):
            for dtype in (torch.float32, torch.float16):
                drawn = torch.randn(
                    shape, generator=torch.Generator("cuda").manual_seed(seed), device="cuda", dtype=dtype
                )
                values = drawn.reshape(-1).double().cpu().numpy()
                name = str(dtype).removeprefix("torch.")
                ends = {"first": values[:16].tolist(), "last": values[-16:].tolist(), "sum": float(values.sum())}
                out.append({"seed": seed, "shape": shape, "dtype": name} | ends)
    return out


def bad_input(findings: Findings, device: CudaDevice) -> None:
    """H: what is wrong is refused with a typed error, and the device goes on working."""
    kernels = require_package()
    shape: Shape = (1, 4, 16, 16)
    memory = np.zeros(1 << 16, np.uint8)
    room = {name: (device.allocate(1 << 16), 1 << 16) for name in ("header", "rows", "seeds", "x", "history", "output")}
    room |= {name: (device.allocate(1 << 16), 1 << 16) for name in ("input", "timestep")}
    base = {"device": 0, "batch": 1, "size": 1024, "stride": 1024, "depth": 1, "rows": 4, "copies": 2}
    base |= {"input": "float32", "output": "float32", "timestep": "float32"}

    def update(change: dict[str, Any] | None = None, **buffers: tuple[int, int]) -> Any:
        return kernels.Update(**(base | (change or {})), buffers=room | buffers)

    def refused(name: str, work: Callable[[], Any], kind: type[Exception], says: str = "") -> None:
        try:
            work()
        except kind as error:
            findings.check(name, says in str(error), str(error))
        except Exception as error:
            findings.check(name, False, f"{type(error).__name__}: {error}")
        else:
            findings.check(name, False, "was not refused")

    outside = (memory.ctypes.data + 255) // 256 * 256
    for name in room:
        refused(f"host memory as {name}", lambda n=name: update(**{n: (outside, 1 << 15)}), ValueError, "host memory")
    refused("null pointer", lambda: update(x=(0, 1 << 16)), ValueError, "null")
    refused("short buffer", lambda: update(x=(room["x"][0], 16)), ValueError, "needs")
    refused("misaligned buffer", lambda: update(x=(room["x"][0] + 1, 1 << 15)), ValueError, "aligned")
    refused("unknown type", lambda: update({"output": "float8"}), ValueError, "choose from")
    refused("no such device (kernels)", lambda: update({"device": 99}), ValueError, "this machine has")
    refused("no such device (edgediff)", lambda: CudaDevice(99), ArgumentError, "this machine has")
    host_pair, inside = (outside, 1 << 12), room["x"]
    scaling = {"device": 0, "type": "float32", "count": 64, "scale": 1.0, "shift": 0.0, "stream": device.stream}
    refused("host latents", lambda: kernels.unscale(x=host_pair, z=inside, **scaling), ValueError, "host memory")
    refused("host pixels", lambda: kernels.to_uint8(device=0, decoded=inside, pixels=host_pair, header=room["header"],
                                                    type="float32", images=1, area=64, stream=device.stream),
            ValueError, "host memory")  # fmt: skip
    if kernels.device_count() > 1:
        other = CudaDevice(1)
        refused("stream of another device", lambda: update().begin(other.stream), ValueError, "belongs to device 1")
        far = other.allocate(1 << 16)
        refused("memory of another device", lambda: update(x=(far, 1 << 16)), ValueError, "memory of device 1")
    model = Replay(device, shape, "float32")
    loop = DeviceLoop(device, model, shape, rows=ROWS)
    table = plan(Schedule(), "dpmpp_2m", STEPS, 7.5)
    refused("too many rows", lambda: loop.run(plan(Schedule(), "ddim", 40), [TorchCpuGenerator(0)]), ArgumentError)
    broken = Replay(device, shape, "float32")
    broken.memory[3] = np.nan
    device.upload(broken.address, broken.memory)
    loop.model = broken

    def to_the_end() -> Any:
        for step in loop.run(table, [TorchCpuGenerator(0)]):
            pass
        return step.after

    refused("NaN from the model", to_the_end, EngineError, "unet, step 4,")
    loop.model = model
    expected = on_host(table, model, shape, [TorchCpuGenerator(0)])
    model.call = 0
    error = relative(to_the_end(), expected.after)
    findings.check("the device goes on working", error <= EXACT, f"error {error:.2g}")
