"""What a child may take and touch: memory, time, files, system calls. The parent says it, the child binds itself."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...checks import is_number, is_whole
from ...errors import ArgumentError, EngineError, shown
from . import landlock, seccomp

LEAST_MEMORY = 256 << 20  # bytes; Python and the libraries alone take about half of it
MOST_MEMORY = 1 << 50
SECONDS = 600.0
ANSWER_SHARE = 4  # what one call gives back is at most this part of the memory
OPEN_FILES = 64
PARENT_DEATH_SIGNAL, DUMPABLE, NO_NEW_PRIVILEGES = 1, 4, 38  # of prctl
SIGKILL = 9


@dataclass(frozen=True)
class Limits:
    """How much a bundle's native libraries may take, for ``load(isolated=Limits(...))``.

    Args:
        memory: bytes that the child may hold of its own. None: 4 GiB and four times the size of the bundle's files, but
            nine tenths of what is free at most.
        seconds: how long one call of a part may take, or its opening; None for no bound.

    Raises:
        ArgumentError: memory outside 256 MiB .. 1 PiB, or seconds outside 0.01 .. 10**7.
    """

    memory: int | None = None
    seconds: float | None = SECONDS

    def __post_init__(self) -> None:
        if self.memory is not None and not is_whole(self.memory, LEAST_MEMORY, MOST_MEMORY):
            raise ArgumentError(
                f"memory is {shown(self.memory)}; it must be a whole number of bytes, {LEAST_MEMORY} .. {MOST_MEMORY}"
            )
        if self.seconds is not None and not is_number(self.seconds, 0.01, 1e7):
            raise ArgumentError(f"seconds is {shown(self.seconds)}; it must be a number, 0.01 .. 1e7, or None")


@dataclass(frozen=True)
class Held:
    """What holds a child back here.

    Attributes:
        memory: bytes that it may hold of its own.
        seconds: how long a call may take.
        holds: what is kept from it, each with what keeps it.
        lacks: what this system has no means for, in the same form.
    """

    memory: int
    seconds: float | None
    holds: tuple[str, ...]
    lacks: tuple[str, ...]


def why_no_isolation() -> str:
    """Tell why a child's memory cannot be bounded here, or no child can be started; an empty string where it can."""
    if sys.platform != "linux":
        return f"a child's memory can be bounded on Linux alone, and this is {sys.platform}"
    if getattr(sys, "frozen", False) or not sys.executable:
        return "it starts a second Python, and this program is frozen or has none (sys.executable)"
    return ""


def held(limits: Limits, memory: int) -> Held:
    """Tell what would hold a child back here, without binding anything.

    Args:
        memory: what ``limits.memory`` stands for.

    Raises:
        EngineError: not even memory can be bounded.
    """
    if reason := why_no_isolation():
        raise EngineError(f"nothing can be isolated here: {reason}")
    version, filtered = landlock.abi(), seccomp.available()
    means = {
        "reading other files, writing any (Landlock)": version > 0,
        "TCP (Landlock)": version >= 4,
        "sockets, new processes, signals, writing files (seccomp)": filtered,
    }
    holds = tuple(what for what, there in means.items() if there)
    return Held(memory, limits.seconds, holds, tuple(what for what in means if what not in holds))


def apply(memory: int, readable: Iterable[Path]) -> None:
    """Bind this process, which must have one thread, for good: after this it reads ``readable`` and no other file.

    What ``held`` lists as lacking is left out.

    Raises:
        OSError: the kernel refused a bound that it has.
    """
    import resource

    if len(os.listdir("/proc/self/task")) != 1:
        raise OSError("the process has several threads, and one of them alone would be bound")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    bounds = {
        resource.RLIMIT_DATA: most,  # private memory that can be written: the heap, and what is mapped
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: OPEN_FILES,
    }
    for kind, bound in bounds.items():
        hard = resource.getrlimit(kind)[1]
        bound = bound if hard == resource.RLIM_INFINITY else min(bound, hard)  # one may only go lower
        resource.setrlimit(kind, (bound, bound))
    _prctl(DUMPABLE, 0)  # other processes of the user do not read its memory
    _prctl(NO_NEW_PRIVILEGES, 1)
    if landlock.abi():
        landlock.restrict(readable)
    if seccomp.available():
        seccomp.install()


def end_with(parent: int) -> None:
    """Let the kernel end this process when the thread that started it ends, and with it the parent.

    Raises:
        OSError: the parent is gone already.
    """
    _prctl(PARENT_DEATH_SIGNAL, SIGKILL)
    if os.getppid() != parent:
        raise OSError("the parent has ended")


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(ctypes.c_int(option), *(ctypes.c_ulong(v) for v in (value, 0, 0, 0))):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
