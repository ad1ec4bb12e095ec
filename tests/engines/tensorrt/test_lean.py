"""TensorRT's lean runtime, the one part of it that the registry has, where there is no NVIDIA driver.

Without a driver ``Runtime(logger)`` logs an error and returns an object all the same. Whatever is then asked of
it, and even letting go of it, kills the process: so the driver is looked for first.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engines.tensorrt import bindings

START = """
import os, resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import tensorrt_lean_bindings as trt
log = trt.Logger(trt.Logger.ERROR)
"""
RUNTIME = """
runtime = trt.Runtime(log)
print("made", runtime is not None, flush=True)
"""
# As edgediff does before it makes a runtime.
PREFLIGHT = """
from edgediff import EngineError
from edgediff.engines.tensorrt import installed
try:
    installed.this_platform(0, ("tensorrt_lean_bindings",))
except EngineError as error:
    print(error)
    raise SystemExit(3)
"""
VERSION = """
from edgediff.engines.tensorrt import installed
print(installed.version(("tensorrt_lean_bindings",)))
"""


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


pytestmark = pytest.mark.skipif(has_driver(), reason="an NVIDIA driver is here: nothing crashes")


@pytest.fixture(scope="module")
def lean(wheels: Path) -> dict[str, str]:
    """The environment of a process that imports the lean runtime."""
    try:
        folders = bindings.lean(wheels)
    except bindings.Unavailable as error:
        pytest.skip(f"TensorRT's lean runtime cannot be had: {error}")
    kept = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, folders), *filter(None, kept)])}


def run(program: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)


def test_runtime_is_made_without_a_driver(lean: dict[str, str]) -> None:
    # Gone without a destructor.
    done = run(f"{START}{RUNTIME}os._exit(0)", lean)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "made True")
    assert "CUDA initialization failure with error: 35" in done.stdout


@pytest.mark.parametrize(
    "step",
    [
        "runtime.deserialize_cuda_engine(b'not an engine')",
        "runtime.deserialize_cuda_engine(b'')",
        "runtime.engine_host_code_allowed = True",
        "runtime.num_DLA_cores",
        "del runtime",
    ],
)
def test_whatever_follows_kills_the_process(lean: dict[str, str], step: str) -> None:
    done = run(f"{START}{RUNTIME}{step}\nprint('survived', flush=True)\nos._exit(0)", lean)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (-signal.SIGSEGV, "made True")


def test_preflight_says_it_first(lean: dict[str, str]) -> None:
    done = run(f"{PREFLIGHT}{START}{RUNTIME}", lean)
    assert (done.returncode, "made" in done.stdout) == (3, False), done.stderr
    assert "no NVIDIA driver" in done.stdout


def test_version_is_read_without_a_driver(lean: dict[str, str]) -> None:
    assert run(VERSION, lean).stdout == "(11, 4, 0, 106)\n"
