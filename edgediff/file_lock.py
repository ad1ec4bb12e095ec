"""A lock is a file that one holder has at a time. It ends with the process that has it, however that ends."""

from __future__ import annotations

import errno
import os
import stat
import sys
from contextlib import suppress
from pathlib import Path

FLAGS = os.O_RDWR | os.O_CREAT
for _name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):
    FLAGS |= getattr(os, _name, 0)
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)  # what a lock that another has says
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)  # what a disk without locks says
TRIES = 1000


class FileLock:
    """A lock that is held, by its file's descriptor. ``take`` makes one; ``release`` gives it back.

    Attributes:
        sure: False where the disk has no locks, so that another may hold it as well.
    """

    def __init__(self, path: Path, descriptor: int, sure: bool) -> None:
        self.path, self.sure = path, sure
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: Path) -> FileLock | None:
        """Take the lock at once; None where another holds it, in this process or another one. The file is made.

        Raises:
            OSError: the file cannot be made, is none (a link, a folder, a pipe), or does not stay.
        """
        for _ in range(TRIES):
            descriptor = os.open(path, FLAGS, 0o666)
            try:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise OSError(errno.EINVAL, "it is no regular file", str(path))
                sure = _locked(descriptor)
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                        held, descriptor = cls(path, descriptor, sure), -1
                        return held
                # The last holder took the file away between our two calls: another may have made a new one by now.
            except OSError as error:
                if error.errno in HELD:
                    return None
                raise
            finally:
                if descriptor >= 0:
                    os.close(descriptor)
        raise OSError(errno.EAGAIN, "it does not stay", str(path))

    def release(self, remove: bool = False) -> None:
        """Give the lock back; with ``remove`` its file goes, too."""
        if remove and sys.platform != "win32":  # while it is held: whoever opened this file sees that it is gone
            with suppress(OSError):
                self.path.unlink()
        _unlock(self._descriptor)
        os.close(self._descriptor)
        if remove and sys.platform == "win32":  # which removes no file that is open
            with suppress(OSError):
                self.path.unlink()


def _locked(descriptor: int) -> bool:
    """Lock an open file; False where the disk has no locks. Raises ``OSError`` where another holds it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False
        raise
    return True


def _unlock(descriptor: int) -> None:
    """Give a lock back. To close the file is not enough where a process that was forked meanwhile has it open, too."""
    if sys.platform != "win32":
        import fcntl

        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)
