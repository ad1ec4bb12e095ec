"""Large updates beside a plain copy: those without noise move bytes, those with noise draw it."""

from __future__ import annotations

from typing import Any

from benchmarks.kernel.speed import REPEATS, Prepared, on_device, typical
from benchmarks.sections import Report
from edgediff.device.cuda import CudaDevice

SHAPE = (512, 4, 128, 128)
FEW = 10  # updates between two events
SHARE = 0.85  # of what bounds an update
# A value of an update with noise takes about 150 instructions (machine code of sm_90, by nvdisasm), most of them its
# normal value, and a multiprocessor begins 128 a clock. With 132 of them at 1.755 GHz, as a datasheet has it, that is
# 3.2 TB/s of 16 bytes a value: more than an H100's copy (3.0 TB/s), 74 % of an H200's (4.3). A GPU may clock higher.
INSTRUCTIONS, LANES, CLOCK_HZ = 150, 128, 1.755e9


def noise_bound(multiprocessors: int, bytes_a_value: float) -> float:
    """Give the GB/s at which an update with noise moves its bytes where every instruction is begun at once."""
    return multiprocessors * LANES * CLOCK_HZ / INSTRUCTIONS * bytes_a_value / 1e9


def bandwidth(report: Report, device: CudaDevice) -> None:
    """Give the bytes that a large update must move over its time, as a share of the bandwidth of a plain copy.

    The goal is a share of what bounds it: the copy, or with noise the instructions, where those take longer.
    """
    import torch

    stream = torch.cuda.ExternalStream(device.stream)
    copied = _copy_bandwidth(torch, stream)
    report.figures["copy_GB_s"] = round(copied, 1)
    cases = {
        "euler": (typical("euler"), False),
        "dpmpp_2m": (typical("dpmpp_2m"), False),
        "dpmpp_2m with x0": (typical("dpmpp_2m"), True),
        "euler_a, noise drawn": (typical("euler_a"), False),
    }
    for name, (row, previews) in cases.items():
        p = Prepared(torch, device, SHAPE, row, previews)
        taken = on_device(torch, stream, lambda p=p: [p.enqueue() for _ in range(FEW)], FEW)
        ran, bad = p.ran()
        moved, each = p.bytes / taken / 1e3, p.bytes / p.values
        bound = min(copied, noise_bound(device.multiprocessors, each)) if row.d else copied
        report.figures[name] = {
            "us": round(taken, 1),
            "bytes_a_value": each,
            "GB_s": round(moved, 1),
            "share_of_copy": round(moved / copied, 3),
            "share_of_copy_by_instructions_at_1755_MHz": round(bound / copied, 3),
        }
        report.check(f"every update ran, {name}", (ran, bad) == ((3 + REPEATS) * FEW, 0), f"{ran}, bad {bad}")
        what = "instructions" if bound < copied else "copy"
        report.goal(f"share of what bounds it ({what}): {name}", moved / bound, f">= {SHARE}")
        del p
        torch.cuda.empty_cache()


def _copy_bandwidth(torch: Any, stream: Any) -> float:
    """Give the GB/s, read and written, of a copy of 2 GB."""
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    torch.cuda.synchronize()
    return 2 * source.numel() / on_device(torch, stream, lambda: target.copy_(source)) / 1e3
