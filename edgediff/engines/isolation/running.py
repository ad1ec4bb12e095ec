"""One process: how it is started, told and heard, and what is known of its end."""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ...errors import EngineError, printable, shown
from .channel import MEMORY, Arena, Arrays, ChannelError, Message, copies, receive, room, send, write
from .limits import ANSWER_SHARE, Held

LAST_WORDS = 4096  # bytes of stderr that are looked at when a child has died
# Variables that a child gets: where libraries are, and how many threads they use. Whatever else is not its business.
PASSED = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "TZ", "LANG", "GLIBC_TUNABLES")
PASSED_PREFIXES = ("LC_", "ORT_", "OMP_", "KMP_", "MALLOC_")
PACKAGES = ("edgediff", "numpy", "onnxruntime", "tokenizers")
# Neither site nor the current folder is on the path: the folders of the packages alone, behind the standard library.
PROGRAM = (
    "import sys, json; sys.path += json.loads(sys.argv[1]); "
    "from edgediff.engines.isolation.worker import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)

Job = tuple["Future[subprocess.Popen[bytes]]", Callable[[], "subprocess.Popen[bytes]"]]

_spawning = threading.Lock()
_spawner: queue.SimpleQueue[Job] | None = None


class Running:
    """A process, the socket to it, and the memory that both see."""

    def __init__(self) -> None:
        try:
            self._connection, theirs = socket.socketpair()
            try:
                self._errors, errors_theirs = os.pipe()
            except BaseException:
                self._connection.close()
                theirs.close()
                raise
        except OSError as error:
            raise EngineError(f"an isolated child cannot be started: {error}") from error
        try:
            os.set_blocking(errors_theirs, False)  # what nobody reads is lost, and stops nobody
            os.set_blocking(self._errors, False)
            command = [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-c", PROGRAM]
            command += [json.dumps(_folders()), str(theirs.fileno()), str(os.getpid())]
            self._process = _spawn(command, theirs.fileno(), errors_theirs)
        except BaseException as error:
            self._connection.close()
            os.close(self._errors)
            if isinstance(error, (OSError, RuntimeError)):  # the second: no thread can be started
                raise EngineError(f"an isolated child cannot be started: {error}") from error
            raise
        finally:
            theirs.close()
            os.close(errors_theirs)
        self._arena: Arena | None = None

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def tell(self, message: Message, seconds: float | None) -> None:
        self._connection.settimeout(seconds)
        send(self._connection, message)

    def hear(self, seconds: float | None) -> Message:
        return receive(self._connection, until=None if seconds is None else time.monotonic() + seconds)

    def exchange(self, message: Message, arrays: Arrays, held: Held) -> tuple[Message, dict[str, NDArray[Any]]]:
        """Send a message with arrays, and return the answer with its own. Raises as ``channel`` does."""
        until = None if held.seconds is None else time.monotonic() + held.seconds
        self._connection.settimeout(held.seconds)
        arena = self._with_room(max(1, room(arrays)))
        self.tell({**message, "arrays": write(arena.memory, arrays)}, held.seconds)
        answer = receive(self._connection, until=until)
        if "needs" in answer:
            needed, most = answer["needs"], held.memory // ANSWER_SHARE
            if type(needed) is not int or needed < 0:
                raise ChannelError(f"an answer of {shown(needed)} bytes")
            if needed > most:
                self.tell({"op": "none"}, held.seconds)
                text = f"it gave {needed / 1e9:.2f} GB in one call, and may give {most / 1e9:.2f}"
                return {"error": MEMORY, "text": text}, {}
            arena = self._with_room(needed)
            answer = receive(self._connection, until=until)
        return answer, copies(arena.memory, arena.size, answer["arrays"]) if "arrays" in answer else {}

    def _with_room(self, size: int) -> Arena:
        if self._arena is None or self._arena.size < size:
            arena = Arena(size)
            arena.hand_over(self._connection)
            self._arena = arena
        return self._arena

    def gone(self, seconds: float) -> str:
        """Tell how it ended, or ends within some seconds; an empty string where it does not."""
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(seconds)
            if code < 0:
                with suppress(ValueError):
                    return f"was killed by {signal.Signals(-code).name}"
            return f"ended with code {code}"
        return ""

    def last_words(self) -> str:
        """What it wrote to stderr, harmless and on one line."""
        try:
            data = os.read(self._errors, 1 << 16)
        except OSError:
            return ""
        return printable(" ".join(data[-LAST_WORDS:].decode("utf-8", "replace").split()))

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        """It is gone after this."""
        self._process.kill()
        self._process.wait()
        self._close()

    def forget(self) -> None:
        self._process.returncode = 0  # it is nothing to wait for
        self._close()

    def _close(self) -> None:
        self._connection.close()
        if self._errors >= 0:
            os.close(self._errors)
            self._errors = -1


def _folders() -> list[str]:
    """Where the packages that a child imports come from in this process, without what lies relative to a folder."""
    specs = [importlib.util.find_spec(name) for name in PACKAGES]
    origins = [Path(spec.origin).resolve().parents[1] for spec in specs if spec is not None and spec.origin]
    return list(dict.fromkeys(map(str, origins)))


def _environment() -> dict[str, str]:
    passed = {k: v for k, v in os.environ.items() if k in PASSED or k.startswith(PASSED_PREFIXES)}
    return {**passed, "OPENBLAS_NUM_THREADS": "1"}  # NumPy's library would start threads before they are bound


def _spawn(command: Sequence[str], connection: int, errors: int) -> subprocess.Popen[bytes]:
    """Start a process in a thread that lives as long as this process: the kernel ends a child with the *thread* that
    made it.
    """
    global _spawner
    with _spawning:
        if _spawner is None:
            _spawner = queue.SimpleQueue()
            threading.Thread(target=_serve, args=(_spawner,), name="edgediff-isolation", daemon=True).start()
        done: Future[subprocess.Popen[bytes]] = Future()
        _spawner.put((done, lambda: _popen(command, connection, errors)))
        return done.result()


def _popen(command: Sequence[str], connection: int, errors: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        list(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        pass_fds=(connection,),
        cwd="/",
        env=_environment(),
        start_new_session=True,  # Ctrl-C in a terminal is the parent's
    )


def _serve(jobs: queue.SimpleQueue[Job]) -> None:
    while True:
        done, start = jobs.get()
        try:
            done.set_result(start())
        except BaseException as error:
            done.set_exception(error)


def after_fork() -> None:
    """In a process that was forked there is no such thread."""
    global _spawner, _spawning
    _spawning, _spawner = threading.Lock(), None
