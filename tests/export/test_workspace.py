"""The folder in which an export works: what it never deletes, who holds it, what is on the disk when."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from edgediff import OutputError
from edgediff_export.adopting.adopt import adopt
from edgediff_export.convert import export
from edgediff_export.manifest import DRAFT_MANIFEST
from edgediff_export.optimum_layout.write import export_optimum
from edgediff_export.workspace import Workspace

from ..support.foreign import make_foreign

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="modes and links as POSIX has them")


def fill(workspace: Workspace) -> None:
    """Write a little bundle, as a step does."""
    (workspace.bundle / "unet.onnx").write_bytes(b"graph")
    workspace.finish("a step", {}, [workspace.bundle / "unet.onnx"])
    (workspace.bundle / DRAFT_MANIFEST).write_text("{}")


def seen(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


# What an export did not make.


@POSIX
def test_a_link_in_the_work_folders_place(tiny_source: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "docs").mkdir(parents=True)
    (home / "docs" / "thesis.txt").write_text("years of work")
    (tmp_path / ".out.partial").symlink_to(home)
    with pytest.raises(
        OutputError, match=r"\.out\.partial, the folder in which it grows, is a link, .* delete the link"
    ):
        export(tiny_source, tmp_path / "out")
    assert seen(home) == {"docs/thesis.txt": b"years of work"}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"thesis.txt": "years"},
            r"holds 'thesis\.txt' and no \.edgediff-lock, so that no export made it; move it away",
        ),
        ({"state.json": '{"key": "k", "done": {}}'}, r"and no \.edgediff-lock"),
        ({".edgediff-lock": "", "bundle/unet.onnx": "mine"}, r"holds no state\.json of an export"),
        ({".edgediff-lock": "", "state.json": "{}", "bundle/unet.onnx": "mine"}, r"holds no state\.json of an export"),
        ({".edgediff-lock": "", "state.json": '{"by": "edgediff export"}', "notes": ""}, r"holds 'notes', which no"),
        (
            {".edgediff-lock": "", "state.json": '{"by": "edgediff export"}', "bundle/deep/thesis.txt": ""},
            r"holds 'bundle/deep/thesis\.txt', which no export wrote",
        ),
    ],
    ids=str,
)
def test_a_folder_of_somebody_else(tmp_path: Path, files: dict[str, str], said: str) -> None:
    root = tmp_path / ".out.partial"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    before = seen(root)
    with pytest.raises(OutputError, match=said):  # noqa: SIM117
        with Workspace(tmp_path / "out", "key").open():
            pass
    assert seen(root) == before


@POSIX
@pytest.mark.parametrize("place", ["bundle", "bundle/unet.onnx", "state.json", ".edgediff-lock"])
def test_links_inside_lead_nowhere(tmp_path: Path, place: str) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "unet.onnx").write_bytes(b"mine")
    with pytest.raises(KeyboardInterrupt), Workspace(tmp_path / "out", "key").open() as workspace:  # noqa: PT012
        fill(workspace)
        raise KeyboardInterrupt
    target = workspace.root / place
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    target.symlink_to(mine if place == "bundle" else mine / "unet.onnx")
    with pytest.raises(OutputError), Workspace(tmp_path / "out", "other key").open():
        pass
    assert seen(mine) == {"unet.onnx": b"mine"}


def test_what_came_meanwhile_stays(tmp_path: Path) -> None:
    """A failed export removes its own files alone."""
    with pytest.raises(Exception, match="no operator"), Workspace(tmp_path / "out", "key").open() as workspace:  # noqa: PT012
        fill(workspace)
        (workspace.root / "thesis.txt").write_text("years")
        raise RuntimeError("no operator")
    assert set(seen(workspace.root)) == {"thesis.txt", ".edgediff-lock"}


def test_what_a_kill_after_the_end_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle is in place and its work folder still there: the next run says that OUT exists, and clears it."""
    with monkeypatch.context() as patched, Workspace(tmp_path / "out", "key").open() as workspace:
        fill(workspace)
        patched.setattr(workspace._folder, "clear", lambda: None)
        workspace.publish()
    assert {p.name for p in tmp_path.iterdir()} == {"out", ".out.partial"}
    with pytest.raises(OutputError, match="exists and is not an empty folder"):
        Workspace(tmp_path / "out", "key")
    assert seen(tmp_path) == {"out/bundle.json": b"{}", "out/unet.onnx": b"graph"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_work_stays_where_somebody_took_its_name(tmp_path: Path) -> None:
    """An interrupted export keeps what it has, though OUT is something else now."""
    with pytest.raises(KeyboardInterrupt), Workspace(tmp_path / "out", "key").open() as workspace:  # noqa: PT012
        fill(workspace)
        raise KeyboardInterrupt
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("")
    with pytest.raises(OutputError, match="exists and is not an empty folder"):
        Workspace(tmp_path / "out", "key")
    assert (workspace.bundle / "unet.onnx").is_file()


# Two at once.

HOLD = """
    import sys
    from pathlib import Path
    from edgediff_export.workspace import Workspace
    with Workspace(Path(sys.argv[1]), "key").open() as workspace:
        (workspace.bundle / "unet.onnx").write_bytes(b"graph")
        print("working", flush=True)
        sys.stdin.read()
"""


def holding(out: Path) -> subprocess.Popen[str]:
    """A process that works on an export to ``out`` until it is told to end, or is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    return process


def test_two_exports_to_one_place(tiny_source: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    out, foreign = tmp_path / "out", make_foreign(tiny_bundle, tmp_path / "foreign")
    process = holding(out)
    before = seen(tmp_path / ".out.partial")
    exports: list[Callable[[], Path]] = [
        lambda: export(tiny_source, out),
        lambda: export_optimum(tiny_source, out),
        lambda: adopt(foreign, out),
    ]
    for start in exports:
        with pytest.raises(OutputError, match="another export to it is running; name another"):
            start()
        assert seen(tmp_path / ".out.partial") == before
    process.kill()  # a lock ends with its process
    process.communicate()
    assert (tmp_path / ".out.partial").is_dir()
    export(tiny_source, out)
    assert {p.name for p in tmp_path.iterdir()} == {"out", "foreign"}


RACE = """
    import sys, time
    from pathlib import Path
    from edgediff.errors import OutputError
    from edgediff_export.workspace import Workspace
    print("ready", flush=True)
    sys.stdin.read(1)
    try:
        with Workspace(Path(sys.argv[1]), "key").open() as workspace:
            for k in range(20):
                (workspace.bundle / f"{k}.onnx").write_text(sys.argv[2])
                time.sleep(0.01)
            (workspace.bundle / "draft-bundle.json").write_text("{}")
            workspace.publish()
            print("published")
    except OutputError as error:
        print(error)
"""


def test_processes_that_start_at_once(tmp_path: Path) -> None:
    """One of them makes the bundle; the others say that it is being made, or is there."""
    out = tmp_path / "out"
    command = [sys.executable, "-c", textwrap.dedent(RACE), str(out)]
    racers = [
        subprocess.Popen([*command, str(k)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for k in range(4)
    ]
    for process in racers:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in racers:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    said = [process.communicate()[0].strip() for process in racers]
    (winner,) = [k for k, line in enumerate(said) if line == "published"]
    others = [line for line in said if line != "published"]
    assert all("another export to it is running" in line or "exists and is not an empty" in line for line in others), (
        said
    )
    assert seen(out) == {**{f"{k}.onnx": str(winner).encode() for k in range(20)}, "bundle.json": b"{}"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


# Modes, and the order in which things reach the disk.


@POSIX
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o027])
def test_modes_follow_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with Workspace(tmp_path / "out", "key").open() as workspace:
            fill(workspace)
            workspace.publish()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777 & ~mask
    assert {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "out").iterdir()} == {0o666 & ~mask}


@POSIX
def test_a_private_umask_is_kept_by_an_export(tiny_source: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        export(tiny_source, tmp_path / "out", precision="fp32")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) & 0o077 for p in [tmp_path / "out", *(tmp_path / "out").iterdir()]} == {0}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path: Path) -> None:
    """Of a bundle and its folder every byte, before the rename; the parent's names after it."""
    log, out = tmp_path / "log", tmp_path / "place" / "out"
    code = textwrap.dedent(RACE)
    calls = "trace=fsync,fdatasync,rename,renameat,renameat2"
    subprocess.run(
        ["strace", "-f", "-y", "-e", calls, "-o", str(log), sys.executable, "-c", code, str(out), "x"],
        input="\n",
        text=True,
        check=True,
        capture_output=True,
    )
    lines = log.read_text().splitlines()
    partial = tmp_path / "place" / ".out.partial" / "bundle"
    (rename,) = [k for k, line in enumerate(lines) if "rename" in line and f'"{out}"' in line]
    before, after = lines[:rename], lines[rename + 1 :]
    for name in [*(f"{k}.onnx" for k in range(20)), "bundle.json"]:
        assert any("fsync(" in line and f"<{partial / name}>" in line for line in before), name
    assert any("fsync(" in line and f"<{partial}>" in line for line in before)
    assert any("fsync(" in line and f"<{out.parent}>" in line for line in after)
