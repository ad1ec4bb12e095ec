"""What a process opens, runs and deletes, seen by an audit hook: all that is not its own folder or Python's is found.

A hook sees what Python does. What native libraries open is seen by ``strace`` (``--strace``).
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# What the interpreter, NumPy, Pillow and the runtime's own look at the machine may read.
SYSTEM = (
    "/proc/self/cgroup",
    "/proc/self/status",
    "/proc/self/maps",
    "/proc/self/statm",
    "/proc/self/mountinfo",
    "/proc/self/task",
)
SYSTEM += ("/proc/meminfo", "/proc/cpuinfo", "/proc/stat", "/sys/fs/cgroup", "/sys/devices/system")
SYSTEM += ("/dev/null", "/dev/urandom", "/usr/share/zoneinfo", "/etc/localtime", "/dev/shm", "/usr/lib", "/lib")
WRITES = {"os.remove": 0, "os.rename": 1, "os.rmdir": 0, "shutil.rmtree": 0, "os.truncate": 0, "os.chmod": 0}
PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "os.startfile")
FORBIDDEN = (*PROGRAMS, "socket.connect", "socket.bind", "socket.getaddrinfo", "pickle.find_class", "urllib.Request")


def libraries() -> list[Path]:
    """Folders that Python itself reads."""
    named = [*sys.path, *sysconfig.get_paths().values(), *site.getsitepackages(), sys.prefix, sys.base_prefix]
    modules = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    return [Path(name) for name in {*filter(None, named), *(os.path.dirname(file) for file in modules if file)}]


def watch(roots: Iterable[Path]) -> list[str]:
    """Watch this process from now on; what it does outside of ``roots`` is added to the list that is returned."""
    own = tuple(f"{os.path.realpath(root).rstrip('/')}/" for root in roots)
    proc = f"/proc/{os.getpid()}/"
    readable = (*own, *(f"{os.path.realpath(p)}/" for p in libraries()), *SYSTEM)
    found: list[str] = []

    def within(path: Any, places: tuple[str, ...]) -> bool:
        if isinstance(path, int):  # opened before
            return True
        try:
            return f"{os.path.realpath(os.fsdecode(path))}/".replace(proc, "/proc/self/", 1).startswith(places)
        except (TypeError, ValueError):
            return True  # no path: the call will fail

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            writing = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            if not within(path, (*own, "/dev/null") if writing else readable):
                found.append(f"{'wrote' if writing else 'opened'} {path!r}")
        elif event in WRITES:
            for path in arguments[: 1 + WRITES[event]]:
                if event in ("os.remove", "os.rmdir") and arguments[1:] != (-1,):
                    continue  # inside of a tree whose removal was seen
                if not within(path, own):
                    found.append(f"{event} {path!r}")
        elif event in FORBIDDEN:
            found.append(f"{event} {arguments!r}"[:300])

    sys.addaudithook(hook)
    return found
