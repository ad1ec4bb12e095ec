"""torch's CUDA noise on the GPU at hand, kept for a test without one."""

from __future__ import annotations

from benchmarks.sections import Report
from edgediff.device.cuda import CudaDevice
from edgediff.sampling.rng import TorchCudaGenerator

SEEDS = (0, 42, 2**40 + 5)
SHAPES = ((1, 4, 64, 64), (1, 4, 128, 128), (1, 16, 256, 256))


def torch_noise(report: Report, device: CudaDevice) -> None:
    """Keep both ends and the sum of what ``torch.randn`` draws, by seed, shape and type."""
    import torch

    golden = []
    for seed in SEEDS:
        for shape in SHAPES:
            for dtype in (torch.float32, torch.float16):
                generator = torch.Generator("cuda").manual_seed(seed)
                drawn = torch.randn(shape, generator=generator, device="cuda", dtype=dtype)
                values = drawn.reshape(-1).double().cpu().numpy()
                name = str(dtype).removeprefix("torch.")
                ends = {"first": values[:16].tolist(), "last": values[-16:].tolist(), "sum": float(values.sum())}
                golden.append({"seed": seed, "shape": shape, "dtype": name} | ends)
    size = device.multiprocessors, device.threads_per_multiprocessor
    report.figures |= {"threads": TorchCudaGenerator(0, *size).place(2**28)[0], "golden": golden}
