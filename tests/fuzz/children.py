"""A case runs in a child, with limits of memory and time. It raises ``EdgediffError``, or works; all else is found."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from edgediff.errors import EdgediffError

from .watching import watch

CPU_SECONDS = 10  # a case that takes more is found
WALL_SECONDS = 60  # a case that waits for longer is found; the machine may be busy
MEMORY = 1_000_000_000  # bytes of memory beyond the parent's; a case that takes more is found
ADDRESSES = 4 << 30  # bytes beyond the parent's; keeps the machine alive
FINE = ("worked", "refused", "panicked")


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        verdict: worked, refused (a typed error), panicked (and a library's words on stderr beside it), untyped (another
            error), crashed, hung, memory, outside (it reached out of its folder), or printed (too much, or words of a
            library).
        detail: the error, or what was done.
        case: what was changed.
        cpu: seconds.
    """

    verdict: str
    detail: str = ""
    case: str = ""
    cpu: float = 0.0

    @property
    def fine(self) -> bool:
        return self.verdict in FINE


Report = Callable[[Outcome], None]


def judged(case: str, act: Callable[[], object]) -> Outcome:
    """Run one case in this process."""
    start = time.process_time()
    try:
        act()
        verdict, detail = "worked", ""
    except EdgediffError as error:
        verdict, detail = "refused", f"{type(error).__name__}: {error}"
        if len(detail) > 6000:
            verdict, detail = "printed", f"a message of {len(detail)} characters: {detail[:300]}"
    except BaseException as error:
        verdict, detail = "untyped", "".join(traceback.format_exception(error)[-6:])[-1500:]
    return Outcome(verdict, detail, case, time.process_time() - start)


def in_child(do: Callable[[Report], None], roots: list[Path]) -> list[Outcome]:
    """Run ``do`` in a fork of this process, and give what it reported.

    Args:
        do: runs cases, one or several, and reports each.
        roots: folders that it may read besides Python's own; all else that it touches is found.
    """
    read, write = os.pipe()
    output = tempfile.TemporaryFile()  # noqa: SIM115
    child = os.fork()
    if child == 0:
        os.close(read)
        _live(do, roots, write, output.fileno())
    os.close(write)
    lines, hung = _listen(read, child)
    _, status, usage = os.wait4(child, 0)
    outcomes = [Outcome(**json.loads(line)) for line in lines]
    printed = _read(output)
    last = outcomes[-1].case if outcomes else "?"
    cpu = usage.ru_utime + usage.ru_stime
    if hung or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)):
        outcomes.append(Outcome("hung", f"{cpu:.1f} s of CPU; {printed[-300:]}", f"after {last}", cpu))
    elif status:
        outcomes.append(Outcome("crashed", f"status {status}; {printed[-1000:]}", f"after {last}", cpu))
    if (grown := usage.ru_maxrss * 1024 - held()[1]) > MEMORY:
        outcomes.append(Outcome("memory", f"{grown / 1e9:.1f} GB", f"up to {last}", cpu))
    if printed and not hung and not status:
        verdict = "panicked" if "panicked at" in printed else "printed"
        outcomes.append(Outcome(verdict, printed[-500:], f"up to {last}", cpu))
    return outcomes


def held() -> tuple[int, int]:
    """This process's address space and resident memory, in bytes; a fork begins with both."""
    size, resident = Path("/proc/self/statm").read_text().split()[:2]
    return int(size) * resource.getpagesize(), int(resident) * resource.getpagesize()


def _read(file: object) -> str:
    file.seek(0)  # type: ignore[attr-defined]
    return str(file.read().decode("utf-8", "replace"))  # type: ignore[attr-defined]


def _listen(read: int, child: int) -> tuple[list[str], bool]:
    """Lines of the child's reports, and whether it had to be killed."""
    data, end = b"", time.monotonic() + WALL_SECONDS
    with os.fdopen(read, "rb", buffering=0) as f:
        while True:
            ready, _, _ = select.select([f], [], [], max(0.0, end - time.monotonic()))
            if not ready:
                os.kill(child, signal.SIGKILL)
                return data.decode().splitlines(), True
            piece = f.read(1 << 16)
            if not piece:
                return data.decode().splitlines(), False
            if b"\n" in piece:
                end = time.monotonic() + WALL_SECONDS
            data += piece


def _live(do: Callable[[Report], None], roots: list[Path], write: int, output: int) -> None:
    """The child's life; it does not return."""
    code = 70
    try:
        addresses = held()[0] + ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(output, 1)
        os.dup2(output, 2)
        warnings.simplefilter("ignore")  # a program hears them as it likes
        outside = watch(roots)

        def report(outcome: Outcome) -> None:
            if outside:
                outcome = Outcome("outside", "; ".join(outside)[:1000], outcome.case, outcome.cpu)
                outside.clear()
            elif outcome.cpu > CPU_SECONDS:
                outcome = Outcome("hung", f"{outcome.cpu:.1f} s of CPU; {outcome.detail}", outcome.case, outcome.cpu)
            os.write(write, json.dumps(asdict(outcome)).encode() + b"\n")

        do(report)
        sys.stdout.flush()
        sys.stderr.flush()
        code = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)
