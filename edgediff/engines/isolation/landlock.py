"""Landlock (https://docs.kernel.org/userspace-api/landlock.html): a process gives up the file system, but for some
files that it may read, and TCP, and signals to others. It needs no privilege, and cannot be undone.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on every architecture
VERSION = 1  # flag of the first: tell the ABI, make nothing
PATH_BENEATH = 1
READ_FILE = 1 << 2
# How many rights on files each ABI knows; every one is handled, and so denied where no rule gives it.
RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
NEWEST_RIGHTS = 16
BIND_TCP, CONNECT_TCP = 1, 2  # from ABI 4
ABSTRACT_SOCKETS, SIGNALS = 1, 2  # from ABI 6


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _Beneath(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"  # Python 3.14 wants it said
    _fields_ = (("access", ctypes.c_uint64), ("parent", ctypes.c_int32))


def _call(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    return int(libc.syscall(ctypes.c_long(number), *arguments))


def abi() -> int:
    """Tell the kernel's version of Landlock; 0 where there is none."""
    try:
        return max(0, _call(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION)))
    except (AttributeError, OSError):
        return 0


def restrict(readable: Iterable[Path]) -> int:
    """Leave this thread, and those that it starts, nothing of the file system but these files, to read.

    The process must have given up new privileges before. Files that are not there are passed over.

    Returns:
        The ABI, as ``abi``.

    Raises:
        OSError: the kernel refused.
    """
    version = abi()
    rights = (1 << RIGHTS.get(version, NEWEST_RIGHTS)) - 1
    attributes = _Ruleset(rights, BIND_TCP | CONNECT_TCP, ABSTRACT_SOCKETS | SIGNALS)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = _checked(_call(CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), ctypes.c_uint32(0)))
    try:
        for path in readable:
            _allow(ruleset, path)
        _checked(_call(RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)))
    finally:
        os.close(ruleset)
    return version


def _allow(ruleset: int, path: Path) -> None:
    try:
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rule = _Beneath(READ_FILE, file)
        _checked(_call(ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(PATH_BENEATH), ctypes.byref(rule),
                       ctypes.c_uint32(0)))  # fmt: skip
    finally:
        os.close(file)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
    return result
