"""Machine code that nvcc makes beforehand is told by the sources that it was made of, in every way of building it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgediff.device.cuda.source import kernel_source, stamp_of

CPP_EXT = Path(__file__).parents[2] / "cpp_ext"
SOURCES = ("grid.h", "kernels.cu", "philox.h", "types.h", "update.h")
PROJECT = "cmake_minimum_required(VERSION 3.24)\nproject(alone LANGUAGES NONE)\ninclude(fatbin.cmake)\n"

pytestmark = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("make")), reason="there is no cmake, or no make"
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """What cpp_ext has of it, in a folder of its own with a space in its name."""
    source = tmp_path / "the source"
    shutil.copytree(CPP_EXT / "cuda", source / "cuda")
    shutil.copy(CPP_EXT / "fatbin.cmake", source)
    (source / "CMakeLists.txt").write_text(PROJECT)
    return source


def configure(source: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["cmake", "-G", "Unix Makefiles", "-S", str(source), "-B", str(source / "made"), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", env=os.environ | environment, check=False)


def made_of(source: Path) -> dict[str, str]:
    facts: dict[str, str] = json.loads((source / "made" / "kernels.json").read_text())
    return facts


@pytest.fixture
def needs_nvcc() -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc")


@pytest.mark.slow
@pytest.mark.usefixtures("needs_nvcc")
def test_it_is_compiled_again_for_other_sources_whatever_their_dates(source: Path) -> None:
    (source / "cuda" / ".#types.h").symlink_to("nowhere")  # Emacs has it open
    fatbin, text = source / "made" / "kernels.fatbin", source / "cuda" / "kernels.cu"

    def build(capabilities: str) -> tuple[bytes, dict[str, str]]:
        done = configure(source, "-DEDGEDIFF_CUDA=ON", f"-DEDGEDIFF_ARCHITECTURES={capabilities}")
        assert done.returncode == 0, done.stderr
        subprocess.run(["cmake", "--build", str(source / "made")], check=True, capture_output=True)
        return fatbin.read_bytes(), made_of(source)

    first, facts = build("90;87")
    assert facts["sources"] == kernel_source().stamp
    assert facts["architectures"] == "87 90"
    listed = [sys.executable, str(CPP_EXT / "cross" / "architectures.py"), str(fatbin)]
    assert set(subprocess.check_output(listed, text=True).split()) == {"sm_87", "sm_90", "compute_87"}
    written = fatbin.stat().st_mtime_ns
    assert build("90;87") == (first, facts)
    assert fatbin.stat().st_mtime_ns == written
    text.write_text(text.read_text().replace("unscale_##type", "other_##type"))
    os.utime(text, (0, 0))  # older than what was made, as files of an archive are
    second, facts = build("90;87")
    assert second != first
    files = {path.name: path.read_bytes() for path in (source / "cuda").iterdir() if path.name in SOURCES}
    assert facts["sources"] == stamp_of(files)


@pytest.mark.parametrize(
    ("options", "environment", "why"),
    [
        (["-DEDGEDIFF_CUDA=off"], {}, "EDGEDIFF_CUDA is off; choose from AUTO, ON, OFF"),
        (["-DEDGEDIFF_ARCHITECTURES=87,110"], {}, "EDGEDIFF_ARCHITECTURES has 87,110; it must be compute"),
        (["-DEDGEDIFF_ARCHITECTURES=75;87-real"], {}, "EDGEDIFF_ARCHITECTURES has 87-real; it must be compute"),
        ([], {"CUDACXX": "/no/such/nvcc"}, "CUDACXX is /no/such/nvcc, and there is no such program"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    source: Path, options: list[str], environment: dict[str, str], why: str
) -> None:
    done = configure(source, *options, **environment)
    assert done.returncode
    assert why in " ".join(done.stderr.split())


def test_off_compiles_nothing(source: Path) -> None:
    assert configure(source, "-DEDGEDIFF_CUDA=OFF").returncode == 0
    assert not (source / "made" / "kernels.json").exists()
