"""The stub is compiled here, and a child process is told to find it in place of NVIDIA's driver."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

NAME = "libcuda.so.1"
FLAGS = ("-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden")


def why_not() -> str:
    """Why the stub cannot be compiled here, or an empty string."""
    if os.name != "posix" or os.uname().sysname != "Linux":
        return "the stub driver is for Linux"
    return "" if shutil.which("cc") else "there is no C compiler (cc) for the stub driver"


def compile_stub(folder: Path) -> Path:
    """Compile the stub into ``folder``; give the library. Raises ``CalledProcessError``."""
    sources = sorted(map(str, Path(__file__).parent.glob("*.c")))
    subprocess.run(["cc", *FLAGS, "-o", str(folder / NAME), *sources, "-ldl", "-lpthread"], check=True)
    return folder / NAME


def environment(library: Path) -> dict[str, str]:
    """The environment of a child whose driver is the stub."""
    paths = [str(library.parent), *filter(None, [os.environ.get("LD_LIBRARY_PATH", "")])]
    return os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(paths)}


class Call(NamedTuple):
    """A call is one line of the stub's log."""

    name: str
    thread: int
    context: int  # the device whose context was current, or -1
    capture: bool  # whether its thread was capturing
    details: dict[str, str]


class Stub:
    """The stub speaks with the child in which it is the driver.

    Args:
        driver: the newest CUDA that it runs, as the driver tells it: 13000 is 13.0.
        pools: whether the devices have memory pools.
        devices: how many there are.
    """

    def __init__(self, driver: int = 13000, pools: bool = True, devices: int = 1) -> None:
        self._library = ctypes.CDLL(NAME)
        self._library.stub_text.restype = ctypes.c_char_p
        for name in ("stub_count", "stub_reserved", "stub_allocated"):
            getattr(self._library, name).restype = ctypes.c_uint64
        self._library.stub_configure(driver, pools, devices)

    def late(self, on: bool = True) -> None:
        """Run copies, and all that is enqueued behind them, when they are waited for; or at once."""
        self._library.stub_late(on)

    def log(self, on: bool = True) -> None:
        """Write the log from now on, or only count; faults are always written."""
        self._library.stub_log(on)

    def clear(self) -> None:
        """Empty the log, count from 0, fail nowhere."""
        self._library.stub_clear()

    def fail(self, name: str, code: int = 999, nth: int = 1, times: int = 1 << 30) -> None:
        """Let the call of this name fail from its ``nth`` time on, so many times; ``clear`` ends it."""
        self._library.stub_fail(name.encode(), nth, times, code)

    def count(self, name: str = "") -> int:
        """How often a call was made since ``clear``; of all calls where there is no name."""
        return int(self._library.stub_count(name.encode()))

    @property
    def reserved(self) -> int:
        """The bytes that were freed and stay with the pool."""
        return int(self._library.stub_reserved())

    def allocated(self, pinned: bool = False) -> int:
        """The bytes of device memory that are in use, or of pinned memory."""
        return int(self._library.stub_allocated(int(pinned)))

    @property
    def lines(self) -> list[str]:
        """The log."""
        return str(self._library.stub_text().decode()).splitlines()

    @property
    def faults(self) -> list[str]:
        """What a real driver would not have forgiven."""
        return [line for line in self.lines if line.startswith("FAULT")]

    @property
    def calls(self) -> list[Call]:
        """The calls of the log, oldest first; ``cuMemcpyHtoDAsync_v2`` is ``cuMemcpyHtoDAsync``."""
        found = []
        for line in self.lines:
            if match := re.match(r"(\w+?)(?:_v\d)? thread=(\d+) context=(-?\d+) capture=(\d) *(.*)", line):
                name, thread, context, capture, rest = match.groups()
                details = dict(part.split("=", 1) for part in rest.split())
                found.append(Call(name, int(thread), int(context), capture == "1", details))
        return found

    @property
    def names(self) -> list[str]:
        """The names of the calls, oldest first."""
        return [call.name for call in self.calls]
