"""Where the CUDA kernels' machine code comes from: edgediff-kernels, NVRTC, the cache; and every reason against."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edgediff.device.cuda import machine_code, nvrtc
from edgediff.device.cuda.machine_code import KernelCode, describe_code, kernel_codes, why_no_code
from edgediff.device.cuda.nvrtc import compile_kernels, nvrtc_version
from edgediff.device.cuda.source import kernel_source, stamp_of
from edgediff.errors import EngineError

H100, NEWEST = (9, 0), (99, 0)
SOURCE = Path(__file__).parents[2] / "cpp_ext" / "cuda"
KERNELS = {
    *(f"begin_{pack}_{given}" for pack in (1, 4) for given in ("f32", "f16")),
    *(f"step_{pack}_{given}_{made}" for pack in (1, 4) for given in ("f32", "f16") for made in ("f32", "f16")),
    *(f"{end}_{kind}" for end in ("unscale", "pixels") for kind in ("f32", "f16")),
}


@pytest.fixture
def needs_nvrtc() -> None:
    try:
        nvrtc_version()
    except EngineError as error:
        pytest.skip(str(error))


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if edgediff-kernels were not installed."""
    found = machine_code.find_spec
    monkeypatch.setattr(machine_code, "find_spec", lambda name: None if name == "edgediff_kernels" else found(name))


def package(folder: Path, monkeypatch: pytest.MonkeyPatch, facts: str | None, code: bytes | None = b"code") -> None:
    """edgediff-kernels as it would lie there, with these facts and this machine code."""
    made = folder / "edgediff_kernels"
    made.mkdir()
    (made / "__init__.py").touch()
    for name, data in (("kernels.json", facts and facts.encode()), ("kernels.fatbin", code)):
        if data is not None:
            (made / name).write_bytes(data)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "edgediff_kernels", raising=False)


def facts(**changed: object) -> str:
    return json.dumps({"sources": kernel_source().stamp, "cuda": "13.0", "architectures": "75 90"} | changed)


def codes(folder: Path | None, capability: tuple[int, int] = H100, driver: tuple[int, int] = NEWEST) -> list[object]:
    return list(kernel_codes(capability, driver, folder))


def test_the_sources_are_those_of_the_repository() -> None:
    source = kernel_source()
    assert source.folder.resolve() == SOURCE
    files = {path.name: path.read_bytes() for path in SOURCE.iterdir() if path.suffix in (".cu", ".h")}
    assert {"kernels.cu", "grid.h", "update.h", "philox.h", "types.h"} == set(files)
    assert source.stamp == stamp_of(files)


@pytest.mark.usefixtures("needs_nvrtc")
def test_ptx_has_every_kernel() -> None:
    ptx = compile_kernels("compute_75").decode()
    assert {line.split("(")[0].split()[-1] for line in ptx.splitlines() if ".entry" in line} == KERNELS


@pytest.mark.usefixtures("needs_nvrtc")
def test_another_layout_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    options = [o.replace("ROW_BYTES=", "ROW_BYTES=1") for o in nvrtc.OPTIONS]
    monkeypatch.setattr(nvrtc, "OPTIONS", options)
    with pytest.raises(
        EngineError, match=r"NVRTC cannot compile the kernels for compute_75: .*lays out its structures"
    ):
        compile_kernels("compute_75")


@pytest.mark.usefixtures("needs_nvrtc")
def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(EngineError, match=r"NVRTC cannot compile the kernels for sm_42: .*invalid value"):
        compile_kernels("sm_42")


@pytest.mark.slow
@pytest.mark.usefixtures("needs_nvrtc", "no_package")
def test_what_was_compiled_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "new" / "folder"
    missing, first = codes(folder)
    assert "edgediff-kernels, which may hold them, is not installed" in str(missing)
    assert isinstance(first, KernelCode)
    assert (first.kind, first.data[:4]) == ("cubin", b"\x7fELF")
    (kept,) = folder.iterdir()
    with monkeypatch.context() as m:
        m.setattr(machine_code, "compile_kernels", lambda target: pytest.fail("compiled again"))
        assert codes(folder)[1] == first
    for damaged in (b"", b"x" * 100, kept.read_bytes()[:-1], hashlib.sha256(b"other").digest() + first.data):
        kept.write_bytes(damaged)
        assert codes(folder)[1] == first
        assert kept.read_bytes() == hashlib.sha256(first.data).digest() + first.data


@pytest.mark.slow
@pytest.mark.usefixtures("needs_nvrtc", "no_package")
def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (None, tmp_path / "file", tmp_path / "file" / "below"):
        assert isinstance(codes(folder)[1], KernelCode)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows keeps permissions elsewhere")
@pytest.mark.usefixtures("needs_nvrtc", "no_package")
def test_code_that_every_user_can_write_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_code, "compile_kernels", lambda target: b"ours")
    folder = tmp_path / "cache"
    folder.mkdir(0o755)
    codes(folder)
    (kept,) = folder.iterdir()
    kept.write_bytes(hashlib.sha256(b"forged").digest() + b"forged")

    def taken() -> bytes:
        code = codes(folder)[1]
        assert isinstance(code, KernelCode)
        return code.data

    assert taken() == b"forged"  # of a user whom this one lets write
    for path in (folder, kept):
        mode = path.stat().st_mode
        path.chmod(mode | 0o002)
        assert taken() == b"ours"
        path.chmod(mode)
    folder.chmod(0o777)
    kept.unlink()
    assert taken() == b"ours"
    assert not list(folder.iterdir())


@pytest.mark.usefixtures("needs_nvrtc", "no_package")
def test_gpus_that_nvrtc_does_not_know(tmp_path: Path) -> None:
    newer, older = codes(None, (12, 7))[1], codes(None, (5, 2))[1]
    assert isinstance(newer, KernelCode)
    assert newer.kind == "ptx"
    assert b".target sm_121" in newer.data
    assert "compiles for compute capability 7.5 and newer; the GPU has 5.2" in str(older)


@pytest.mark.usefixtures("needs_nvrtc", "no_package")
def test_a_driver_older_than_nvrtc(tmp_path: Path) -> None:
    said = str(codes(None, driver=(nvrtc_version()[0] - 1, 8))[1])
    assert "cannot run what it makes; update the driver, or run: pip install nvidia-cuda-nvrtc-cu" in said


@pytest.mark.skipif(sys.platform == "win32", reason="names of Linux")
@pytest.mark.parametrize("version", ["12.9.10", "13.5.0"])
def test_of_two_nvrtcs_the_one_of_cuda_bindings_is_taken(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`pip install nvidia-cuda-nvrtc-cu12` helps beside the NVRTC that the extra brought."""
    bindings = pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed")
    places = {"12": "cuda_nvrtc/lib/libnvrtc.so.12", "13": "cu13/lib/libnvrtc.so.13"}
    for place in places.values():
        (tmp_path / "nvidia" / place).parent.mkdir(parents=True)
        (tmp_path / "nvidia" / place).touch()
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / "nvidia")])
    monkeypatch.setattr(nvrtc, "find_spec", lambda name: spec)
    monkeypatch.setattr(bindings, "__version__", version)
    first, second = nvrtc._libraries()
    assert first == tmp_path / "nvidia" / places[version[:2]]
    assert {first.name, second.name} == {"libnvrtc.so.12", "libnvrtc.so.13"}


@pytest.mark.usefixtures("no_package")
def test_no_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(function: str, *args: object) -> None:
        raise EngineError("NVRTC cannot be loaded (no such file); run: pip install nvidia-cuda-nvrtc")

    for asked in (nvrtc.nvrtc_version, nvrtc.nvrtc_architectures):
        asked.cache_clear()
    monkeypatch.setattr(nvrtc, "_call", missing)
    try:
        assert ["NVRTC cannot be loaded" in str(one) for one in codes(None)] == [False, True]
    finally:
        for asked in (nvrtc.nvrtc_version, nvrtc.nvrtc_architectures):
            asked.cache_clear()


def test_machine_code_that_came_with_edgediff_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, facts())
    first = next(kernel_codes(H100, NEWEST, None))
    assert first == KernelCode("fatbin", b"code", "edgediff-kernels, by CUDA 13.0")
    monkeypatch.setattr(machine_code, "probe", lambda ordinal: SimpleNamespace(capability=H100, driver=NEWEST))
    assert not why_no_code()
    assert describe_code() == "compiled beforehand by CUDA 13.0 for 75 90"


def test_a_driver_older_than_that_machine_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, monkeypatch, facts())
    said = "edgediff-kernels holds those of CUDA 13.0; the driver runs CUDA 12.6"
    assert str(codes(None, driver=(12, 6))[0]) == said
    monkeypatch.setattr(machine_code, "probe", lambda ordinal: SimpleNamespace(capability=H100, driver=(12, 6)))
    assert said in describe_code()  # and what NVRTC can do
    package_facts = tmp_path / "edgediff_kernels" / "kernels.json"
    package_facts.write_text(facts(cuda="new"))
    assert "has a damaged kernels.json" in str(codes(None)[0])


@pytest.mark.usefixtures("needs_nvrtc", "no_package")
def test_what_info_says_without_edgediff_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_code, "probe", lambda ordinal: SimpleNamespace(capability=H100, driver=NEWEST))
    assert not why_no_code()
    assert describe_code().startswith(f"compiled at first use by NVRTC {nvrtc_version()[0]}.")
    monkeypatch.setattr(machine_code, "probe", lambda ordinal: SimpleNamespace(capability=H100, driver=(11, 8)))
    assert "no CUDA kernels: NVRTC is of CUDA" in why_no_code()
    assert describe_code() == why_no_code()


@pytest.mark.parametrize(
    ("said", "code", "why"),
    [
        (None, None, "was built without CUDA code"),
        (facts(sources="0" * 64), b"code", "those of other sources; install it again"),
        ("{", b"code", "has a damaged kernels.json"),
        ("[]", b"code", "has a damaged kernels.json"),
        ("{}", b"code", "has a damaged kernels.json"),
        (facts(), None, "kernels.fatbin cannot be read"),
    ],
)
def test_machine_code_that_cannot_be_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, code: bytes | None, why: str
) -> None:
    package(tmp_path, monkeypatch, said, code)
    first = next(kernel_codes(H100, NEWEST, None))
    assert isinstance(first, EngineError)
    assert why in str(first)


def test_what_an_editor_leaves_is_no_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "edgediff_cuda"
    shutil.copytree(SOURCE, folder)
    litter(folder)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "edgediff_cuda", raising=False)
    stamp = kernel_source().stamp
    kernel_source.cache_clear()
    try:
        found = kernel_source()
        assert (found.folder, found.stamp) == (folder, stamp)
    finally:
        kernel_source.cache_clear()


def litter(folder: Path) -> None:
    """What Emacs and others leave beside a file that they have open."""
    (folder / ".#types.h").symlink_to("somebody@machine.1:2")
    for name in ("types.h~", "#types.h#", ".types.h.swp", "types.h.orig"):
        (folder / name).write_bytes(b"older")


def test_missing_sources_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from edgediff.device.cuda import source as module

    kernel_source.cache_clear()
    try:
        with monkeypatch.context() as m:
            m.setattr(module, "find_spec", lambda name: None)
            with pytest.raises(EngineError, match=r"edgediff_cuda.* are missing; install edgediff again"):
                kernel_source()
        shutil.copytree(SOURCE, tmp_path / "edgediff_cuda")
        (tmp_path / "edgediff_cuda" / "kernels.cu").unlink()
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "edgediff_cuda", raising=False)
        with pytest.raises(EngineError, match=r"lack kernels\.cu; install edgediff again"):
            kernel_source()
    finally:
        kernel_source.cache_clear()
