"""Folders that are gone when their work is done, and what killed processes leave; locks that end with their process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from edgediff.file_lock import FileLock
from edgediff.scratch import LOCK, clear_dead, scratch_folder

WORK = """
import sys
from edgediff.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "deep").mkdir()
    (folder / "deep" / "file").write_bytes(b"work")
    print(folder, flush=True)
    sys.stdin.read()
"""


def working(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    env = {**os.environ, "TMPDIR": str(parent), "TEMP": str(parent), "TMP": str(parent)}
    command = [sys.executable, "-c", WORK]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_gone_at_the_end(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an error"), scratch_folder(tmp_path) as folder:  # noqa: PT012
        (folder / "file").write_text("")
        raise ValueError("an error")
    assert list(tmp_path.iterdir()) == []


def test_the_next_one_clears_what_is_dead_and_nothing_else(tmp_path: Path) -> None:
    (dead, old), (living, new) = working(tmp_path), working(tmp_path)
    assert old.parent == tmp_path
    assert (old / "deep" / "file").is_file()  # the second one left the first alone
    dead.kill()
    dead.communicate()
    mine = tmp_path / "edgediff-notes"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years")  # no lock, so that it is none of ours
    if sys.platform != "win32":
        home = tmp_path / "home"
        home.mkdir()
        (home / LOCK).write_text("")
        (home / "thesis.txt").write_text("years")
        (tmp_path / "edgediff-link").symlink_to(home)
    with scratch_folder(tmp_path):
        assert not old.exists()
        assert (new / "deep" / "file").is_file()
    living.communicate("")
    left = sorted(p.name for p in tmp_path.rglob("thesis.txt"))
    assert left == ["thesis.txt"] * (1 if sys.platform == "win32" else 2)
    assert not new.exists()


def test_a_folder_that_was_killed_before_its_lock(tmp_path: Path) -> None:
    tempfile.mkdtemp(prefix="edgediff-", dir=tmp_path)
    clear_dead(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["edgediff-out", "edgediff-pictures"])
def test_an_empty_folder_of_somebody_elses(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name).chmod(0o755)
    clear_dead(tmp_path)
    if sys.platform != "win32":
        assert (tmp_path / name).is_dir()


def test_what_is_gone_already(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an error"), scratch_folder(tmp_path) as folder:  # noqa: PT012
        shutil.rmtree(folder)
        raise ValueError("an error")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_lock_is_given_back_though_a_forked_process_has_its_file(tmp_path: Path) -> None:
    code = """
import os, sys, time
from pathlib import Path
from edgediff.file_lock import FileLock
path = Path(sys.argv[1])
lock = FileLock.take(path)
if (pid := os.fork()) == 0:
    time.sleep(60)
    os._exit(0)
lock.release()
print(FileLock.take(path) is not None)
os.kill(pid, 9)
os.waitpid(pid, 0)
"""
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "lock")], capture_output=True, text=True, check=False
    )
    assert run.stdout == "True\n", run.stderr


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    first = FileLock.take(tmp_path / "lock")
    assert first is not None
    assert first.sure
    assert FileLock.take(tmp_path / "lock") is None  # in the same process, too
    first.release()
    second = FileLock.take(tmp_path / "lock")
    assert second is not None
    second.release(remove=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and links as POSIX has them")
@pytest.mark.parametrize("how", ["link", "pipe", "folder"])
def test_what_is_no_file_is_no_lock(tmp_path: Path, how: str) -> None:
    path = tmp_path / "lock"
    if how == "link":
        (tmp_path / "file").write_text("mine")
        path.symlink_to(tmp_path / "file")
    elif how == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(OSError):  # noqa: PT011
        FileLock.take(path)


@pytest.mark.skipif(sys.platform == "win32", reason="fcntl")
def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not sure that nobody else has it, so nothing is cleared away for being dead."""
    import errno

    def flock(descriptor: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    (tmp_path / "edgediff-other").mkdir()
    (tmp_path / "edgediff-other" / LOCK).write_text("")
    with scratch_folder(tmp_path) as folder:
        assert folder.is_dir()
    assert [p.name for p in tmp_path.iterdir()] == ["edgediff-other"]


def test_a_disk_whose_files_change_their_numbers_is_an_error_and_no_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "samestat", lambda *_: False)
    with pytest.raises(OSError, match="does not stay"):
        FileLock.take(tmp_path / "lock")
