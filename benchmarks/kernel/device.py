"""The GPU at hand."""

from __future__ import annotations

import time
from typing import Any

from edgediff.device.cuda import CudaDevice
from edgediff.device.driver import probe


def facts(device: CudaDevice) -> dict[str, Any]:
    """Describe a GPU and the kernels on it, which are compiled here where nobody has asked for them yet."""
    start = time.perf_counter()
    kernels: Any = device.kernels
    return {
        "name": device.name,
        "compute_capability": "{}.{}".format(*device.compute_capability),
        "multiprocessors": device.multiprocessors,
        "threads_per_multiprocessor": device.threads_per_multiprocessor,
        "driver_cuda": "{}.{}".format(*probe(device.ordinal).driver),
        "kernels": kernels.origin,
        "kernels_found_in_s": round(time.perf_counter() - start, 3),
    }
