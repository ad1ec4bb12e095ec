"""What ptxas, NVIDIA's compiler from PTX to machine code, says of the kernels; no GPU is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edgediff.device.cuda.nvrtc import OPTIONS
from edgediff.device.cuda.source import MAIN, kernel_source

MOST = 64  # registers: four blocks of 256 threads on a multiprocessor, as the grid assumes
ENTRY = re.compile(r"entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) reg", re.S)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [75, 87, 90, 110])
def test_kernels_keep_within_their_registers(tmp_path: Path, capability: int) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc")
    known = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    if f"sm_{capability}" not in known:
        pytest.skip(f"this nvcc does not compile for sm_{capability}")
    command = ["nvcc", "-cubin", f"-arch=sm_{capability}", *OPTIONS, "-Xptxas", "-v", "-o", str(tmp_path / "kernels")]
    done = subprocess.run([*command, str(kernel_source().folder / MAIN)], capture_output=True, text=True, check=True)
    found = {name: tuple(map(int, numbers)) for name, *numbers in ENTRY.findall(done.stderr)}
    assert len(found) == 16
    assert {name: used for name, used in found.items() if used[:2] != (0, 0) or used[2] > MOST} == {}
