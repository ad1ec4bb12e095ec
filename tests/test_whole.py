"""Files appear whole or not at all; what killed writers left goes, and what living ones write stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgediff import OutputError, save
from edgediff.whole import clear_forgotten, replacing

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="permissions, links and locks of POSIX")
PICTURE = Image.new("RGB", (8, 8), "red")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@POSIX
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o777])
def test_what_was_there_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    path.chmod(mode)
    seen = []
    before = os.umask(0o027)
    try:
        save(PICTURE, path)
        with replacing(path) as f:
            f.write(b"new")
            seen = [p.stat().st_mode & 0o777 for p in tmp_path.iterdir()]
        (tmp_path / "new.png").touch()
        save(PICTURE, tmp_path / "other.png")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode
    assert set(seen) == {mode}  # also while it is written
    assert (tmp_path / "other.png").stat().st_mode == (tmp_path / "new.png").stat().st_mode


@POSIX
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_what_was_there_keeps_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.touch()
    os.chown(path, 12345, 12346)
    save(PICTURE, path)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12346)


@pytest.mark.skipif(not hasattr(os, "fchmod"), reason="no permissions of open files here")
def test_a_disk_that_keeps_no_permissions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAT and SMB refuse ``fchmod`` to all but the owner of the mount; they still take files."""

    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchmod", refused)
    path = tmp_path / "a.png"
    path.write_bytes(b"before")
    with replacing(path) as file:
        file.write(b"after")
    assert path.read_bytes() == b"after"
    assert os.listdir(tmp_path) == ["a.png"]


@POSIX
def test_a_link_is_replaced_and_what_it_names_stays(tmp_path: Path) -> None:
    (tmp_path / "kept.png").write_bytes(b"kept")
    (tmp_path / "a.png").symlink_to("kept.png")
    (tmp_path / "b.png").symlink_to("nowhere.png")
    for name in ("a.png", "b.png"):
        save(PICTURE, tmp_path / name)
        assert not (tmp_path / name).is_symlink()
    assert (tmp_path / "kept.png").read_bytes() == b"kept"
    assert names(tmp_path) == ["a.png", "b.png", "kept.png"]


@POSIX
def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(OutputError, match="it is no regular file"):
        save(PICTURE, tmp_path / "a.png")
    assert names(tmp_path) == ["a.png"]


def test_a_picture_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def watch(name: str) -> None:
        real = getattr(os, name)

        def call(*args: Any) -> Any:
            done.append(name)
            return real(*args)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "replace"):
        watch(name)
    save(PICTURE, tmp_path / "a.png")
    assert done == (["fsync", "replace", "fsync"] if sys.platform != "win32" else ["fsync", "replace"])


WRITER = """
import sys, time
from pathlib import Path
from edgediff.whole import replacing
with replacing(Path(sys.argv[1])) as f:
    f.write(b"half")
    f.flush()
    print("writing", flush=True)
    sys.stdin.readline()
"""


@POSIX
def test_the_next_picture_removes_what_a_killed_writer_left_and_nothing_else(tmp_path: Path) -> None:
    def writer() -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path / "a.PNG"], stdin=-1, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "writing\n"
        return child

    killed = writer()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (left,) = names(tmp_path)
    assert left.startswith(".edgediff-")
    living = writer()
    others = [".edgediff-0123456789ab.png.txt", ".edgediff-mine.png", "edgediff-0123456789ab.png", ".edgediff-0.png"]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / ".edgediff-0123456789ac.png").mkdir()
    (tmp_path / ".edgediff-0123456789ad.png").symlink_to("b.png")
    save(PICTURE, tmp_path / "b.png")
    there = names(tmp_path)
    assert left not in there
    assert {*others, ".edgediff-0123456789ac.png", ".edgediff-0123456789ad.png", "b.png"} < {*there}
    living.communicate("\n")
    assert (tmp_path / "a.PNG").read_bytes() == b"half"


@pytest.mark.skipif(not Path("/proc").exists(), reason="counts open files")
def test_savers_in_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    stop, errors = threading.Event(), []

    def clear() -> None:
        while not stop.is_set():
            clear_forgotten(tmp_path)

    def write(k: int) -> None:
        try:
            for _ in range(40):
                save(PICTURE, tmp_path / f"{k}.png")
        except Exception as error:
            errors.append(error)

    before = len(os.listdir("/proc/self/fd"))
    cleaners = [threading.Thread(target=clear) for _ in range(2)]
    writers = [threading.Thread(target=write, args=(k,)) for k in range(4)]
    for thread in cleaners + writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in cleaners:
        thread.join()
    assert not errors
    assert names(tmp_path) == [f"{k}.png" for k in range(4)]
    assert len(os.listdir("/proc/self/fd")) == before
