"""How much memory a system can still give, and what is said when it has given all."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import EdgediffError, EngineError, MemoryLimitError, printable

UNLIMITED = 1 << 60  # bytes; cgroups and rlimits say "none" by numbers beyond it
HOST_VM_INFO64, VM_INTEGERS = 4, 128  # of mach/host_info.h; room for vm_statistics64, which grows


@contextmanager
def memory_named(doing: str) -> Iterator[None]:
    """Name what was being done (``drawing the noise``) where memory, or Python's stack, ends inside.

    Raises:
        MemoryLimitError: in place of a ``MemoryError``.
        EngineError: in place of a ``RecursionError``.
    """
    try:
        yield
    except EdgediffError:
        raise
    except MemoryError as error:
        said = printable(str(error))
        raise MemoryLimitError(
            f"memory ran out while {doing}{f' ({said})' if said else ''}; fewer or smaller pictures take less"
        ) from error
    except RecursionError as error:
        raise EngineError(
            f"Python's stack ended while {doing}; call from fewer functions deep, or raise sys.setrecursionlimit "
            f"(it is {sys.getrecursionlimit()})"
        ) from error


def free_memory(swap: bool = False, proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that this process can still have: the least of what the machine, the process's control groups and its
    resource limits leave. None where nothing tells.

    Args:
        swap: whether to count what the system would have to swap for.
    """
    spare = (kilobytes(proc / "meminfo", "SwapFree:") or 0) if swap else 0
    room = [size + spare for size in (_machine(proc, swap), *_control_groups(proc, groups)) if size is not None]
    return min((max(0, size) for size in (*room, *_resource_limits(proc))), default=None)


def _machine(proc: Path, swap: bool) -> int | None:
    if sys.platform == "win32":
        return _windows(swap)
    if sys.platform == "darwin":
        return _macos(swap)
    return kilobytes(proc / "meminfo", "MemAvailable:")


def kilobytes(file: Path, name: str) -> int | None:
    """A line ``NAME  N kB`` of a file of Linux's /proc, in bytes; None where there is none."""
    for line in _text(file).splitlines():
        if line.startswith(name):
            with suppress(ValueError, IndexError):
                return 1024 * int(line.split()[1])
    return None


def _control_groups(proc: Path, groups: Path) -> Iterator[int]:
    """What is left in each of the process's groups, and in the groups around them: version 2, and 1's memory."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        kinds, _, path = rest.partition(":")
        if number == "0" and not kinds:
            root, most, used, droppable = groups, "memory.max", "memory.current", ("inactive_file", "active_file")
        elif "memory" in kinds.split(","):
            root, droppable = groups / "memory", ("total_inactive_file", "total_active_file")
            most, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = root / path.lstrip("/")
        # In a container the path may be the host's, which is not there: its own group is then the root.
        for group in (folder, *folder.parents):
            limit, now = _number(group / most), _number(group / used)
            if limit is not None and now is not None and limit < UNLIMITED:
                yield limit - now + _stat(group / "memory.stat", droppable)
            if group == root:
                break


def _resource_limits(proc: Path) -> Iterator[int]:
    """What is left of the process's address space and of its data."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for limit, used in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
        soft = resource.getrlimit(limit)[0]
        if soft == resource.RLIM_INFINITY or not 0 <= soft < UNLIMITED:
            continue
        taken = kilobytes(proc / "self" / "status", used)
        if taken is not None:
            yield soft - taken


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.isdecimal() and len(text) < 20 else None


def _stat(file: Path, names: Collection[str]) -> int:
    """The sum of these numbers of a group's memory.stat: pages of files, which the system can drop. Those that were
    read twice are among them (weights, when a model is opened again).
    """
    lines = (line.partition(" ") for line in _text(file).splitlines())
    return sum(int(value) for key, _, value in lines if key in names and value.isdecimal() and len(value) < 20)


def _windows(swap: bool) -> int | None:
    class Status(ctypes.Structure):
        _fields_ = (
            ("length", ctypes.c_ulong),
            ("load", ctypes.c_ulong),
            *((name, ctypes.c_ulonglong) for name in ("total", "free", "total_page", "free_page", "v", "fv", "fx")),
        )

    status = Status()
    status.length = ctypes.sizeof(status)
    library: Any = getattr(ctypes, "windll").kernel32  # noqa: B009 -- there is none elsewhere
    if not library.GlobalMemoryStatusEx(ctypes.byref(status)):
        return None
    return int(status.free_page if swap else min(status.free, status.free_page))


def _macos(swap: bool) -> int | None:
    """Pages that are free or inactive, as Mach counts them. It swaps to whatever the disk holds: with ``swap`` all of
    the machine's memory.
    """
    if swap:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        library: Any = ctypes.CDLL(None)
        counts, length = (ctypes.c_uint32 * VM_INTEGERS)(), ctypes.c_uint32(VM_INTEGERS)
        library.mach_host_self.restype = ctypes.c_uint32
        host, page = ctypes.c_uint32(library.mach_host_self()), ctypes.c_size_t()
        failed = library.host_page_size(host, ctypes.byref(page)) or library.host_statistics64(
            host, HOST_VM_INFO64, ctypes.byref(counts), ctypes.byref(length)
        )
    except (OSError, AttributeError):
        return None
    free, inactive = counts[0], counts[2]
    return None if failed else int(page.value) * (free + inactive)
