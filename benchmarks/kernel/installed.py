"""The kernels' package on this machine: whether it can reach a GPU, and building it for one."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time

from benchmarks.common import REPOSITORY
from edgediff.sampling.kernels import find_package


def unusable() -> str:
    """Why the sections on the GPU cannot run; empty where they can."""
    found = find_package()
    if found.module is None:
        return found.why_not
    try:
        return "" if found.module.device_count() else "no CUDA device"
    except found.module.CudaError as error:
        return str(error)


def install() -> float:
    """Build and install ./cpp_ext for this machine's GPU; seconds."""
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "./cpp_ext"]
    settings = {"CMAKE_ARGS": "-DCMAKE_CUDA_ARCHITECTURES=native"} | os.environ
    start = time.perf_counter()
    if code := subprocess.run(command, cwd=REPOSITORY, env=settings).returncode:
        raise SystemExit(code)  # pip has said why
    importlib.invalidate_caches()
    return time.perf_counter() - start
