"""Strangers' files are read only where they are files, and only so far; ours are on the disk before they are named."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

BINARY = getattr(os, "O_BINARY", 0)
NO_WAIT = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file to read. A pipe, a device or a socket is an error at once: opening one may wait for ever, and reading
    one may never end.

    Raises:
        OSError: no such file, no permission, or no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | BINARY | NO_WAIT)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str | Path, limit: int) -> bytes:
    """A file's bytes, at most ``limit`` of them.

    Raises:
        OSError: as ``open_regular``; a file that holds more than ``limit`` bytes (``errno.EFBIG``).
    """
    with open_regular(path) as f:
        data = f.read(limit + 1) or b""  # None where a special file has nothing yet
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it holds more than {limit} bytes", str(path))
    return data


def sync_file(path: str | Path) -> None:
    """Wait until a file's bytes are on the disk."""
    descriptor = os.open(path, os.O_RDWR | BINARY | NO_WAIT)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: str | Path) -> None:
    """Wait until a folder's names are on the disk, where the system can (Windows and some network disks cannot)."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
