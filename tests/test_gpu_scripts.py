"""The scripts that wait for a GPU, as far as they go without one: each says so, and its calls are made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgediff.device.cuda import why_no_device

from .device.stub import library

ROOT = Path(__file__).parents[1]


def call(*arguments: str, code: int = 0) -> str:
    """Run a script, which must end with ``code``; give what it prints."""
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == code, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("script", ["benchmarks.gpu.driver", "benchmarks.gpu.capture"])
def test_without_a_gpu_they_say_so(script: str) -> None:
    if not why_no_device():
        pytest.skip("a GPU is here")
    assert call(script, code=2).startswith("no GPU to run on: ")


def test_a_part_of_the_kernel_sections_leaves_the_figures_of_all() -> None:
    if not why_no_device():
        pytest.skip("a GPU is here")
    results = ROOT / "benchmarks" / "results"
    before = {path.name: path.stat().st_mtime_ns for path in results.glob("kernel*")}
    assert call("benchmarks.kernel", "--check", "--only", "bandwidth").startswith("Nothing was run: no ")
    call("benchmarks.kernel", "--only", "bandwidth", code=2)
    assert before == {path.name: path.stat().st_mtime_ns for path in results.glob("kernel*")}


def test_a_folder_that_was_not_prepared_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--run", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{tmp_path} has no prepared.json: write the folder by --prepare" in done.stderr


@pytest.fixture(scope="module")
def driven(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What ``benchmarks.gpu.driver`` writes where the driver is the stub, under the real cuda-bindings and NVRTC."""
    pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")
    if why := library.why_not():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("driver")
    call("benchmarks.gpu.driver", "--stub", "--out", str(folder))
    return dict(json.loads((folder / "driver-stub.json").read_text(encoding="utf-8")))


def test_every_call_of_the_driver_script_is_made(driven: dict[str, Any]) -> None:
    found = driven["results"]
    assert all(check["holds"] for part in found.values() for check in part.get("checks", []))
    waited = found["events"]["figures"]["cuEventSynchronize behind 0.25 s of work"]
    assert (waited["context_of_the_thread"], waited["gave"]) == (0, "CUDA_ERROR_INVALID_CONTEXT")  # as the stub has it
    aligned = found["addresses"]["figures"]["cuMemAllocAsync"]
    assert aligned["blocks"] == 200 == sum(aligned["blocks_by_address_modulo_512"].values())
    assert aligned["largest_power_of_two_of_all_bytes"] >= 256
    pool = found["pool"]["figures"]
    assert pool["without a trim"]["trim_s"] is None
    assert pool["with cuMemPoolTrimTo(pool, 0)"]["trim_s"] is not None
    assert list(found["copies"]["figures"])[:1] + list(found["copies"]["figures"])[-1:] == ["48 bytes", "1048576 bytes"]
    graphs = found["graphs"]["figures"]
    assert 0 < graphs["graph of 1 kernels"]["host_us"] <= graphs["graph of 1000 kernels"]["host_us"]


def test_a_capture_gives_what_calls_give(tmp_path: Path) -> None:
    """In host memory, where a graph is the calls themselves."""
    pytest.importorskip("edgediff_kernels", reason="edgediff-kernels is not installed")
    call("benchmarks.gpu.capture", "--dry-run", "--out", str(tmp_path))
    found = json.loads((tmp_path / "capture-host.json").read_text(encoding="utf-8"))["results"]
    for way in ("calls", "outside"):
        assert found[way]["figures"]["equal_bits"] is True
        assert len(found[way]["checks"]) == 3
        assert all(check["holds"] for check in found[way]["checks"])
