"""TensorRT's real Python bindings without TensorRT: wheels from the registry, over libraries that define its symbols.

The bindings then import, and say what each release has; nothing of them can run.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

BINDINGS = {
    "10.3": ("tensorrt-cu12-bindings", "10.3.0"),
    "10.13": ("tensorrt-cu12-bindings", "10.13.3.9"),
    "11.4": ("tensorrt-cu13-bindings", "11.4.0.106"),
}
LEAN = (("tensorrt-lean-cu13-bindings", "11.4.0.106"), ("tensorrt-lean-cu13-libs", "11.4.0.106"))
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
# What the extension wants of them; a release that wants more says so when it is imported.
SYMBOLS = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)


class Unavailable(Exception):
    """The bindings cannot be had here, and why."""


def fetch(package: str, version: str, folder: Path) -> Path:
    """The wheel of a package for this Python, from a folder or else from the registry into it."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise Unavailable(f"{package} {version}: looked at on Linux x86-64 only")
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{package.replace('-', '_')}-{version}"
    for tag in (f"cp{sys.version_info.major}{sys.version_info.minor}", "py3"):
        if found := sorted(folder.glob(f"{stem}-{tag}-*.whl")):
            return found[0]
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
        command += ["--disable-pip-version-check", "--retries", "1", "--timeout", "20", "-d", partial]
        done = subprocess.run([*command, f"{package}=={version}"], capture_output=True, text=True)
        wheels = list(Path(partial).glob("*.whl"))
        if done.returncode or not wheels:
            why = [line for line in done.stderr.splitlines() if line.strip()]
            raise Unavailable(f"{package} {version}: {why[-1] if why else 'no wheel'}")
        return wheels[0].replace(folder / wheels[0].name)


def unpack(wheel: Path) -> Path:
    """The wheel's contents, in a folder beside it."""
    folder = wheel.parent / "unpacked" / wheel.name
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        # Whole or not at all: another run may be looking.
        partial = Path(tempfile.mkdtemp(dir=folder.parent))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(partial)
        try:
            partial.rename(folder)
        except OSError:
            shutil.rmtree(partial)
    return folder


def importable(release: str, wheels: Path, folder: Path) -> Path:
    """A folder to put on ``sys.path``, with ``tensorrt_bindings`` of that release and the libraries that it loads."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise Unavailable("no C compiler for the symbols of TensorRT")
    package, version = BINDINGS[release]
    shutil.copytree(unpack(fetch(package, version, wheels)), folder)
    source = folder / "symbols.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in SYMBOLS))
    for name in LIBRARIES:
        # The extension looks beside itself first.
        library = f"lib{name}.so.{version.split('.')[0]}"
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{library}", str(source)]
        subprocess.run([*command, "-o", str(folder / "tensorrt_bindings" / library)], check=True)
    return folder


def stub(release: str, wheels: Path, folder: Path) -> Path:
    """A folder for ``MYPYPATH`` with the types of ``tensorrt`` of that release."""
    return written([importable(release, wheels, folder / "bindings")], "tensorrt_bindings", folder / "types")


def lean_stub(wheels: Path, folder: Path) -> Path:
    """As ``stub``, with the names that the lean runtime has."""
    return written(lean(wheels), "tensorrt_lean_bindings", folder / "types")


def lean(wheels: Path) -> list[Path]:
    """The folders to put on ``sys.path`` for ``tensorrt_lean_bindings``, which need no symbols of ours."""
    return [unpack(fetch(package, version, wheels)) for package, version in LEAN]


def written(folders: list[Path], module: str, types: Path) -> Path:
    stub = types / "tensorrt" / "__init__.pyi"
    stub.parent.mkdir(parents=True)
    path = os.pathsep.join(map(str, folders))
    program = Path(__file__).with_name("stubs.py")
    subprocess.run(
        [sys.executable, str(program), module, str(stub)], check=True, env={**os.environ, "PYTHONPATH": path}
    )
    return types
