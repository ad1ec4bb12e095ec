"""CUDA's libraries of pip's packages are found on the whole of Python's path; with the real preload_dlls."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgediff

# Where NVIDIA's packages for CUDA 13 put what ONNX Runtime needs; one library needs another, and knows it by its name.
LIBRARIES = {"cu13": ("cublasLt.so.13", "cublas.so.13", "curand.so.10"), "cudnn": ("cudnn.so.9",)}
PROGRAM = """
import sys

import onnxruntime as ort
from edgediff.engines.providers import preload

def mapped():
    with open("/proc/self/maps") as f:
        return {line.split()[-1] for line in f if sys.argv[1] in line}

assert not getattr(ort, "cuda_version", "")
preload(ort)
assert not mapped(), "an ONNX Runtime without CUDA needs none"
ort.cuda_version = "13.0"  # as in onnxruntime-gpu, whose Python is the same
ort.print = lambda *_, **__: None
ort.preload_dlls()
assert not mapped(), "it finds them by itself"
preload(ort)
print(*sorted(mapped()), sep="\\n")
"""


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """Two folders of packages on Python's path: of the second the first has one library already."""
    if not sys.platform.startswith("linux") or shutil.which("cc") is None:
        pytest.skip("needs Linux and a C compiler")
    onnxruntime = pytest.importorskip("onnxruntime")
    if not hasattr(onnxruntime, "_get_nvidia_dll_paths"):
        pytest.skip(f"ONNX Runtime {onnxruntime.__version__} does not look for packages")
    for root, folders in (("first", {"cu13": ("curand.so.10",)}), ("second", LIBRARIES)):
        for folder, names in folders.items():
            lib = tmp_path / root / "nvidia" / folder / "lib"
            lib.mkdir(parents=True)
            for name in names:
                needed = [str(lib / "libcublasLt.so.13")] if name == "cublas.so.13" else []
                command = [
                    "cc",
                    "-shared",
                    "-Wl,--no-as-needed",
                    f"-Wl,-soname,lib{name}",
                    "-o",
                    str(lib / f"lib{name}"),
                ]
                subprocess.run([*command, "-x", "c", os.devnull, "-x", "none", *needed], check=True)
    return tmp_path


def test_libraries_elsewhere_on_the_path(packages: Path) -> None:
    """What ``pip install --target`` makes: ONNX Runtime here, CUDA's libraries there. Nothing is said."""
    path = [Path(edgediff.__file__).parents[1], packages / "first", packages / "second"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(packages)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), "ORT_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lib, cudnn = packages / "second/nvidia/cu13/lib", packages / "second/nvidia/cudnn/lib"
    curand = packages / "first/nvidia/cu13/lib/libcurand.so.10"  # the first on the path
    expected = {lib / "libcublasLt.so.13", lib / "libcublas.so.13", cudnn / "libcudnn.so.9", curand}
    assert set(done.stdout.split()) == set(map(str, expected))
