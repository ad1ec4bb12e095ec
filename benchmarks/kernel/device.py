"""The GPU at hand: its facts, and the kernels built for it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from typing import Any

from benchmarks.common import REPOSITORY
from edgediff.device.cuda import CudaDevice
from edgediff.sampling.kernels import require_package


def facts(device: CudaDevice) -> dict[str, Any]:
    """Describe a GPU and the kernels on it."""
    from cuda.bindings import driver

    major, minor = device._device.compute_capability
    return {
        "name": device.name,
        "compute_capability": f"{major}.{minor}",
        "multiprocessors": device.multiprocessors,
        "threads_per_multiprocessor": device.threads_per_multiprocessor,
        "driver_cuda": int(driver.cuDriverGetVersion()[1]),
        "kernels": require_package().facts(),
    }


def install() -> float:
    """Build and install ./cpp_ext for this machine's GPU; give the seconds that it took."""
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "./cpp_ext"]
    settings = {"CMAKE_ARGS": "-DCMAKE_CUDA_ARCHITECTURES=native"} | os.environ
    start = time.perf_counter()
    if code := subprocess.run(command, cwd=REPOSITORY, env=settings).returncode:
        raise SystemExit(code)  # pip has said why
    importlib.invalidate_caches()
    return time.perf_counter() - start
