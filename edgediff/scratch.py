"""A scratch folder is gone when its work is done. What a killed process left is cleared away by the next one."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .file_lock import FileLock

LOCK = ".edgediff-lock"  # in each folder, held as long as the folder is in use
PREFIX = "edgediff-"
TRIES = 100
POSIX = os.name == "posix"
MADE = re.compile("[a-z0-9_]{8}")  # the end of a name by tempfile.mkdtemp


@contextmanager
def scratch_folder(parent: str | Path | None = None, prefix: str = PREFIX) -> Iterator[Path]:
    """Make a folder in ``parent`` (the system's own for such when None) that is gone afterwards. Folders of this prefix
    that dead processes left are cleared away, before and after.

    Raises:
        OSError: it cannot be made.
    """
    import tempfile  # 3 ms that only those pay who need it

    parent = Path(tempfile.gettempdir() if parent is None else parent)
    clear_dead(parent, prefix)
    for _ in range(TRIES):
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with suppress(FileNotFoundError):  # cleared away by another process, which found it without a lock
            if (lock := FileLock.take(folder / LOCK)) is not None:
                break
    else:
        raise OSError(f"no scratch folder stays in {parent}")
    try:
        yield folder
    finally:
        _remove(folder, lock)
        clear_dead(parent, prefix)


def clear_dead(parent: Path, prefix: str = PREFIX) -> None:
    """Clear away scratch folders whose process is dead. A folder is one where it is this user's, no link, and holds a
    lock that nobody has, or nothing and is named and closed as such folders are.
    """
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError):
            facts = folder.lstat()
            if not stat.S_ISDIR(facts.st_mode) or (hasattr(os, "getuid") and facts.st_uid != os.getuid()):
                continue
            if not os.listdir(folder):
                if MADE.fullmatch(folder.name, len(prefix)) and (not POSIX or stat.S_IMODE(facts.st_mode) == 0o700):
                    folder.rmdir()
            elif stat.S_ISREG((folder / LOCK).lstat().st_mode):
                lock = FileLock.take(folder / LOCK)
                if lock is not None:
                    _remove(folder, lock) if lock.sure else lock.release()


def _remove(folder: Path, lock: FileLock) -> None:
    """Remove a folder whose lock we have. The lock goes last, so that what stays can be told for what it is."""
    left = []
    with suppress(OSError):  # somebody else may have taken all of it away
        for entry in os.scandir(folder):
            if entry.name == LOCK:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with suppress(OSError):
                    os.unlink(entry.path)
        left = [name for name in os.listdir(folder) if name != LOCK]
    lock.release(remove=not left)
    with suppress(OSError):
        folder.rmdir()
