"""Exports that were cut off: nothing that looks like a bundle, and the next run goes on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgediff import BundleError, OutputError
from edgediff.bundle.reading import read_bundle
from edgediff_export.convert import export
from edgediff_export.workspace import Workspace


class Cut:
    """Interrupts an export at the start of a step."""

    def __init__(self, at: str) -> None:
        self.at = at

    def __call__(self, line: str) -> None:
        if line.endswith(self.at):
            raise KeyboardInterrupt


def hashes(root: Path) -> dict[str, str]:
    return {f.path: f.sha256 for _, f in read_bundle(root).files()}


@pytest.mark.parametrize("at", ["vae_decoder: tracing", "pictures by diffusers", "unet: int8", "pictures compared"])
def test_goes_on_where_it_stopped(tiny_source: Path, tmp_path: Path, at: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        export(tiny_source, out, precision="int8", report=Cut(at))
    assert [p.name for p in tmp_path.iterdir()] == [".out.partial"]
    assert not list((tmp_path / ".out.partial").rglob("bundle.json"))
    said: list[str] = []
    export(tiny_source, out, precision="int8", report=said.append)
    assert "text_encoder: tracing: finished before" in said
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert hashes(out) == hashes(export(tiny_source, tmp_path / "whole", precision="int8"))


def test_a_bundle_inside_its_source_goes_on(tiny_source: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_source, tmp_path / "source"))
    with pytest.raises(KeyboardInterrupt):
        export(source, source / "out", precision="int8", report=Cut("unet: tracing"))
    said: list[str] = []
    with (source / "log.txt").open("w") as log:

        def say(line: str) -> None:
            print(line, file=log, flush=True)
            said.append(line)

        export(source, source / "out", precision="int8", report=say)
    assert "text_encoder: tracing: finished before" in said


@pytest.mark.parametrize("how", ["changed", "cut", "gone"])
def test_a_source_that_changes_meanwhile(tiny_source: Path, tmp_path: Path, how: str) -> None:
    """A small change passes every ceiling of a coarse precision."""
    source = Path(shutil.copytree(tiny_source, tmp_path / "source"))
    path = source / "unet" / "diffusion_pytorch_model.safetensors"
    raw = path.read_bytes()

    def change(line: str) -> None:
        if line.startswith("the loop asks"):
            path.unlink()  # what is mapped stays whole
            if how != "gone":
                path.write_bytes(raw[: len(raw) // 9] if how == "cut" else raw[:-4] + bytes(4))

    with pytest.raises(BundleError, match=f"{source}: its files, or those merged into it, changed during the export"):
        export(source, tmp_path / "out", precision="int8", report=change)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_other_arguments_start_anew(tiny_source: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        export(tiny_source, tmp_path / "out", precision="int8", report=Cut("unet: tracing"))
    said: list[str] = []
    export(tiny_source, tmp_path / "out", precision="fp32", report=said.append)
    assert not [line for line in said if "finished before" in line]


def test_interrupted_before_anything_was_done(tiny_source: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        export(tiny_source, tmp_path / "out", report=Cut("text_encoder: tracing"))
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, sys
from edgediff_export.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
sys.exit(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits")
def test_a_disk_that_is_full(tiny_source: Path, tmp_path: Path) -> None:
    """The system refuses to write more, as on a full disk: the U-Net is larger than the limit."""
    code = [sys.executable, "-c", LIMITED, "300000", str(tiny_source), str(tmp_path / "out"), "--precision", "fp32"]
    run = subprocess.run(code, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    last = run.stderr.splitlines()[-1]
    assert last.startswith(f"edgediff: cannot write {tmp_path / 'out'}: File too large; what is finished stays in")
    assert not (tmp_path / "out").exists()
    export(tiny_source, tmp_path / "out", precision="fp32")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_too_little_space_is_said_before_any_work(tiny_source: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"needs about 1000000\.0 GB on the way, .* GB are free"):
        Workspace(tmp_path / "out", "key").need(10**15)
    assert list(tmp_path.iterdir()) == []
