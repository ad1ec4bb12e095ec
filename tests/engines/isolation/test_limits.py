"""What a bound process may still do, tried for real: in a plain child that bound itself as a bundle's child does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgediff import ArgumentError, Limits
from edgediff.engines.isolation import landlock, seccomp
from edgediff.engines.isolation.limits import LEAST_MEMORY, held

filtered = pytest.mark.skipif(not seccomp.available(), reason="no seccomp filter for this machine")
walled = pytest.mark.skipif(not landlock.abi(), reason="no Landlock here")
PROGRAM = """
import ctypes, errno, json, mmap, os, resource, shutil, signal, socket, sys, threading
from pathlib import Path
from edgediff.engines.isolation.limits import apply
allowed, beside, new = map(Path, sys.argv[1:])
libc = ctypes.CDLL(None, use_errno=True)
page = os.sysconf("SC_PAGE_SIZE")
ours = ctypes.create_string_buffer(page)
apply(512 << 20, [allowed])
def call(number, *arguments):
    if libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)) < 0:
        raise OSError(ctypes.get_errno(), "")
attempts = {ATTEMPTS}
out = {}
for name, attempt in attempts.items():
    try:
        attempt()
        out[name] = "done"
    except OSError as error:
        out[name] = errno.errorcode[error.errno]
    except (MemoryError, ValueError) as error:
        out[name] = type(error).__name__
print(json.dumps(out))
"""
FILES = {  # without the filter Landlock refuses to write, by EACCES
    "reads its file": ("allowed.read_bytes()", ["done"]),
    "reads beside it": ("beside.read_bytes()", ["EACCES"]),
    "reads /etc/passwd": ("Path('/etc/passwd').read_bytes()", ["EACCES"]),
    "reads /proc/self/environ": ("Path('/proc/self/environ').read_bytes()", ["EACCES"]),
    "lists a folder": ("os.listdir('/')", ["EACCES", "EPERM"]),
    "writes": ("new.write_bytes(b'')", ["EACCES", "EPERM"]),
    "appends to its file": ("open(allowed, 'ab')", ["EACCES", "EPERM"]),
    "cuts its file": ("os.truncate(allowed, 0)", ["EACCES", "EPERM"]),
    "removes": ("beside.unlink()", ["EACCES", "EPERM"]),
    "renames": ("beside.rename(new)", ["EACCES", "EPERM"]),
    "makes a folder": ("new.mkdir()", ["EACCES", "EPERM"]),
    "makes a link": ("new.symlink_to(beside)", ["EACCES", "EPERM"]),
}
CALLS = {
    "opens a socket": ("socket.socket()", ["EPERM"]),
    "opens a local socket": ("socket.socket(socket.AF_UNIX)", ["EPERM"]),
    "makes a pair": ("socket.socketpair()", ["EPERM"]),
    "forks": ("os.fork()", ["EPERM"]),
    "runs a program": ("os.execv('/bin/true', ['true'])", ["EPERM"]),
    "looks for its parent by a signal": ("os.kill(os.getppid(), 0)", ["EPERM"]),
    "kills its session": ("os.killpg(0, signal.SIGTERM)", ["EPERM"]),
    "signals another's thread": ("call(234 if os.uname().machine == 'x86_64' else 131, 1, 1, 0)", ["EPERM"]),
    "raises a limit": ("resource.setrlimit(resource.RLIMIT_DATA, (-1, -1))", ["ValueError"]),
    "outlives its parent": ("call(157 if os.uname().machine == 'x86_64' else 167, 1, 0, 0, 0, 0)", ["EPERM"]),
    "traces": ("call(101 if os.uname().machine == 'x86_64' else 117, 16, os.getppid(), 0, 0)", ["EPERM"]),
    "reads another's memory": ("call(310 if os.uname().machine == 'x86_64' else 270, os.getppid(), 0, 0, 0, 0, 0)",
                               ["EPERM"]),
    "leaves its namespaces": ("call(272 if os.uname().machine == 'x86_64' else 97, 0x10000000)", ["EPERM"]),
    "makes a ring": ("call(425, 1, 0)", ["ENOSYS"]),
    "makes a process the new way": ("call(435, 0, 0)", ["ENOSYS"]),
    "makes files of memory": ("os.memfd_create('x')", ["EPERM"]),
    "keeps memory that it no longer writes, which is not counted": (
        "call(10 if os.uname().machine == 'x86_64' else 226, ctypes.addressof(ours) & -page, page, 1)", ["EPERM"]),
    "takes shared memory, which is not counted": ("mmap.mmap(-1, 1 << 20)", ["EPERM"]),
    "changes a mode": ("os.chmod(allowed, 0o777)", ["EPERM"]),
    "waits": ("threading.Event().wait(0.01)", ["done"]),
}  # fmt: skip
LIMITS = {
    "takes memory": ("bytearray(100 << 20)", ["done"]),
    "takes too much": ("bytearray(600 << 20)", ["MemoryError"]),
    "maps too much": ("mmap.mmap(-1, 600 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)", ["ENOMEM"]),
    "has threads": ("[t.start() or t.join() for t in [threading.Thread(target=sum, args=([],))]]", ["done"]),
    "dumps": ("resource.getrlimit(resource.RLIMIT_CORE) == (0, 0) or os.open('/missing', 0)", ["done"]),
}


def tried(attempts: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    """What came of each attempt in a bound child: done, or the error's name."""
    allowed, beside = tmp_path / "allowed", tmp_path / "beside"
    for path in (allowed, beside):
        path.write_bytes(b"12345")
    code = "{" + ", ".join(f"{name!r}: lambda: {attempt}" for name, (attempt, _) in attempts.items()) + "}"
    command = [sys.executable, "-c", PROGRAM.replace("{ATTEMPTS}", code), str(allowed), str(beside)]
    run = subprocess.run([*command, str(tmp_path / "new")], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"allowed", "beside"}
    assert allowed.read_bytes() == b"12345"
    out: dict[str, str] = json.loads(run.stdout)
    return out


def check(attempts: dict[str, Any], tmp_path: Path) -> None:
    found = tried(attempts, tmp_path)
    assert {name: result for name, result in found.items() if result not in attempts[name][1]} == {}
    assert list(found) == list(attempts)


@walled
def test_files(tmp_path: Path) -> None:
    check(FILES, tmp_path)


@filtered
def test_system_calls(tmp_path: Path) -> None:
    check(CALLS, tmp_path)


def test_memory_and_threads(tmp_path: Path) -> None:
    check(LIMITS, tmp_path)


def test_several_threads_are_not_bound_in_part(tmp_path: Path) -> None:
    code = (
        "import threading\nfrom edgediff.engines.isolation.limits import apply\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\napply(1 << 30, [])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "several threads" in run.stderr


@pytest.mark.parametrize("machine", list(seccomp.MACHINES))
def test_the_filter_is_a_right_program(machine: str) -> None:
    """Every jump lands inside, every path ends in a verdict, and each call is looked for once."""
    program = seccomp.program(machine, 1234)
    for at, (code, yes, no, _) in enumerate(program):
        if code in (seccomp.EQUAL, seccomp.AT_LEAST, seccomp.ANY_BIT):
            assert at + 1 + max(yes, no) < len(program)
    assert program[-1] == (seccomp.RETURN, 0, 0, seccomp.DENY)
    column = seccomp.MACHINES[machine][0]
    numbers = [n[column] for n in (*seccomp.CALLS.values(), *seccomp.SOME.values()) if n[column] is not None]
    assert len(numbers) == len(set(numbers))


def test_what_holds_is_said() -> None:
    facts = held(Limits(seconds=3), 1 << 30)
    assert (facts.memory, facts.seconds) == (1 << 30, 3)
    assert len(facts.holds) + len(facts.lacks) == 3
    assert any("seccomp" in what for what in (facts.holds if seccomp.available() else facts.lacks))


@pytest.mark.parametrize(
    "arguments",
    [{"memory": 1}, {"memory": LEAST_MEMORY - 1}, {"memory": 2.0**30}, {"memory": True}, {"memory": 10**5000},
     {"memory": "1G"}, {"seconds": 0}, {"seconds": float("nan")}, {"seconds": -1}, {"seconds": "1"}],
    ids=range(10),
)  # fmt: skip
def test_limits_that_are_none(arguments: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=next(iter(arguments))):
        Limits(**arguments)
