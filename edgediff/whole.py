"""A file appears whole or not at all, and what a killed process left behind goes with the next one.

A file is written under a hidden name beside its own, brought to the disk and renamed. Its writer holds a lock on it for
as long as it has the hidden name; so a hidden file that can be locked has no writer.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .files import BINARY, NO_WAIT, sync_folder

if sys.platform != "win32":
    import fcntl

HIDDEN = re.compile(r"\.edgediff-[0-9a-f]{12}\.[a-z]{1,5}", re.IGNORECASE)
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
FORGOTTEN = 3600.0  # seconds, where files are not locked
TRIES = 100
AGAIN = 60.0  # seconds
_cleared = ("", 0.0)  # the last folder, and when


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of ``path`` where the block ends without an error.

    What was there keeps its permissions and its owner where the system lets us; a link is replaced, not followed. A
    file is never seen in part, also where the power fails: it is on the disk before it has its name.

    Raises:
        OSError: it cannot be written, or what is there is no file.
    """
    mode, owner = _before(path)
    hidden, descriptor = make_hidden(path, 0o666 if mode is None else mode)
    try:
        with os.fdopen(descriptor, "wb") as f:
            if owner is not None and sys.platform != "win32":
                with suppress(OSError):
                    os.fchown(descriptor, *owner)
            if mode is not None and hasattr(os, "fchmod"):
                with suppress(OSError):  # disks without permissions (FAT, SMB, shared folders) let the owner alone
                    os.fchmod(descriptor, mode)
            yield f
            f.flush()
            os.fsync(descriptor)
            if sys.platform != "win32":
                os.replace(hidden, path)  # before the end of the lock
        if sys.platform == "win32":  # which renames no open file
            os.replace(hidden, path)
    finally:
        hidden.unlink(missing_ok=True)
    sync_folder(path.parent)


def make_hidden(path: Path, mode: int = 0o666) -> tuple[Path, int]:
    """A new hidden file beside ``path``, locked, with the permissions that ``open`` would give; and its descriptor."""
    for _ in range(TRIES):
        hidden = path.with_name(f".edgediff-{secrets.token_hex(6)}{path.suffix}")
        descriptor = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY | BINARY, mode)
        # Between these two lines another process may take the file for a forgotten one.
        if _lock(descriptor) is not False and hidden.exists():
            return hidden, descriptor
        os.close(descriptor)
        hidden.unlink(missing_ok=True)
    raise OSError(f"hidden files in {path.parent} disappear as they are made")


def clear_now_and_then(folder: Path) -> None:
    """``clear_forgotten``, but once a minute in one folder: to list a large one takes longer than writing."""
    global _cleared
    name, now = str(folder), time.monotonic()
    if _cleared[0] != name or now - _cleared[1] > AGAIN:
        _cleared = name, now
        clear_forgotten(folder)


def clear_forgotten(folder: Path) -> None:
    """Remove the hidden files of writers that were killed; those that are being written, and others' files, stay."""
    with suppress(OSError):  # a folder may be written to and not read
        for name in os.listdir(folder):
            if HIDDEN.fullmatch(name):
                with suppress(OSError):
                    _clear(folder / name)


def _clear(path: Path) -> None:
    there = path.lstat()
    if not stat.S_ISREG(there.st_mode):
        return
    if sys.platform == "win32":  # which removes no open file, but for an instant before the rename ours is closed
        if time.time() - there.st_mtime > FORGOTTEN:
            path.unlink()
        return
    descriptor = os.open(path, os.O_RDONLY | NO_WAIT | NO_FOLLOW)
    try:
        same = os.path.samestat(os.fstat(descriptor), there)
        if same and _lock(descriptor) and os.path.samestat(path.lstat(), there):
            path.unlink()
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Whether we have the lock, until the descriptor is closed; None where there are no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network disks
        return None
    return True


def _before(path: Path) -> tuple[int | None, tuple[int, int] | None]:
    """Permissions and owner of the file that is there; None where there is none, or a link."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return None, None
    if stat.S_ISLNK(there.st_mode):
        return None, None
    if not stat.S_ISREG(there.st_mode):
        raise OSError("it is no regular file")
    same = sys.platform == "win32" or (there.st_uid, there.st_gid) == (os.geteuid(), os.getegid())
    return there.st_mode & 0o777, None if same else (there.st_uid, there.st_gid)
