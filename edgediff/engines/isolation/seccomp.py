"""A seccomp filter lists the system calls that a process may still make; it binds every thread, and cannot be undone.

What ONNX Runtime and the tokenizers need once they are loaded is little: memory, threads, clocks, and reading files.
Whatever is not listed fails: sockets, new processes, other processes' memory and signals, writing and removing files.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Sequence

# Numbers of system calls: x86_64's, aarch64's; None where there is no such call.
CALLS: dict[str, tuple[int | None, int | None]] = {
    **{"read": (0, 63), "write": (1, 64), "close": (3, 57), "lseek": (8, 62), "pread64": (17, 67), "readv": (19, 65)},
    **{"writev": (20, 66), "dup": (32, 23), "stat": (4, None), "fstat": (5, 80), "lstat": (6, None)},
    **{"newfstatat": (262, 79), "statx": (332, 291), "access": (21, None), "faccessat": (269, 48)},
    **{"readlink": (89, None), "readlinkat": (267, 78), "getcwd": (79, 17)},
    **{"munmap": (11, 215), "mremap": (25, 216), "brk": (12, 214), "mincore": (27, 232)},
    **{"futex": (202, 98), "exit": (60, 93), "exit_group": (231, 94), "set_robust_list": (273, 99), "rseq": (334, 293)},
    **{"set_tid_address": (218, 96), "membarrier": (324, 283), "restart_syscall": (219, 128)},
    **{"rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132)},
    **{"sched_yield": (24, 124), "sched_getaffinity": (204, 123), "getcpu": (309, 168), "getpid": (39, 172)},
    **{"gettid": (186, 178), "getppid": (110, 173), "getuid": (102, 174), "geteuid": (107, 175)},
    **{"getgid": (104, 176), "getegid": (108, 177), "clock_gettime": (228, 113), "clock_getres": (229, 114)},
    **{"clock_nanosleep": (230, 115), "nanosleep": (35, 101), "gettimeofday": (96, 169), "time": (201, None)},
    **{"getrandom": (318, 278), "getrlimit": (97, 163), "getrusage": (98, 165), "sysinfo": (99, 179)},
    **{"uname": (63, 160), "recvfrom": (45, 207), "recvmsg": (47, 212), "poll": (7, None), "ppoll": (271, 73)},
}
# Those that are allowed with some arguments alone.
SOME: dict[str, tuple[int | None, int | None]] = {
    **{"open": (2, None), "openat": (257, 56), "mmap": (9, 222), "clone": (56, 220), "tgkill": (234, 131)},
    **{"prlimit64": (302, 261), "prctl": (157, 167), "fcntl": (72, 25), "ioctl": (16, 29), "sendto": (44, 206)},
    **{"madvise": (28, 233), "mprotect": (10, 226)},
}
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above; AUDIT_ARCH_*
X32 = 0x40000000  # numbers of x86_64's second interface begin here
UNIFORM = 424  # from here on numbers are new: glibc has another way where they fail with ENOSYS (clone3 is one)

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
SHARED, ANONYMOUS, GROWSDOWN = 0x01, 0x20, 0x100  # of mmap: memory that RLIMIT_DATA does not count
PROT_WRITE = 2  # of mprotect
THREAD, NAMESPACES = 0x00010000, 0x7E020000  # of clone
SET_NAME, GET_NAME, SET_VMA = 15, 16, 0x53564D41  # of prctl: labels for debuggers
DESCRIPTOR_FLAGS = (1, 2, 3, 4, 1030)  # of fcntl: F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC
TCGETS = 0x5401  # of ioctl: whether it is a terminal
MACHINE_CHECKS = 100  # of madvise: from here on it is the machine's memory that is tested

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # BPF
ALLOW, KILL, DENY, UNKNOWN = 0x7FFF0000, 0x80000000, 0x00050000 | 1, 0x00050000 | 38  # EPERM, ENOSYS
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
SET_SECCOMP, FILTER = 22, 2

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, k


def available() -> bool:
    """Tell whether this machine's calls are known here, and the kernel takes filters."""
    if platform.machine() not in MACHINES:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    # A filter at address 0: EFAULT where filters exist, EINVAL where they do not.
    return libc.prctl(ctypes.c_int(SET_SECCOMP), ctypes.c_ulong(FILTER), zero, zero, zero) != 0 and (
        ctypes.get_errno() == 14
    )


def install() -> None:
    """Bind this thread, and those that it starts, to the list. New privileges must have been given up before.

    Raises:
        OSError: the kernel refused.
    """
    instructions = program(platform.machine(), os.getpid())
    code = b"".join(struct.pack("<HBBI", *instruction) for instruction in instructions)
    memory = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HxxxxxxP", len(instructions), ctypes.addressof(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    zero = ctypes.c_ulong(0)
    if libc.prctl(ctypes.c_int(SET_SECCOMP), ctypes.c_ulong(FILTER), header, zero, zero):
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")


def program(machine: str, pid: int) -> list[Instruction]:
    """Return the filter of a machine, for a process of this number."""
    column, architecture = MACHINES[machine]
    out = [_load(ARCHITECTURE), (EQUAL, 1, 0, architecture), _give(KILL), _load(NUMBER)]
    if machine == "x86_64":
        out += [(AT_LEAST, 0, 1, X32), _give(KILL)]
    for number in (numbers[column] for numbers in CALLS.values()):
        if number is not None:
            out += [(EQUAL, 0, 1, number), _give(ALLOW)]
    rules = {
        "open": _unless_bits(1, WRITING),
        "openat": _unless_bits(2, WRITING),
        "mmap": [_argument(3), (ANY_BIT, 3, 0, GROWSDOWN), (ANY_BIT, 0, 1, SHARED), (ANY_BIT, 1, 0, ANONYMOUS),
                 _give(ALLOW), _give(DENY)],
        "clone": [_argument(0), (ANY_BIT, 1, 0, NAMESPACES), (ANY_BIT, 1, 0, THREAD), _give(DENY), _give(ALLOW)],
        "tgkill": _if_one_of(0, (pid,)),
        "prlimit64": _if_null(2),
        "prctl": _if_one_of(0, (SET_NAME, GET_NAME, SET_VMA)),
        "fcntl": _if_one_of(1, DESCRIPTOR_FLAGS),
        "ioctl": _if_one_of(1, (TCGETS,)),
        "sendto": _if_null(4),
        # What is no longer to be written is no longer counted by RLIMIT_DATA, though it stays.
        "mprotect": [_argument(2), (ANY_BIT, 0, 1, PROT_WRITE), _give(ALLOW), _give(DENY)],
        "madvise": [_argument(2), (AT_LEAST, 1, 0, MACHINE_CHECKS), _give(ALLOW), _give(DENY)],
    }  # fmt: skip
    for name, rule in rules.items():
        number = SOME[name][column]
        if number is not None:
            out += [(EQUAL, 0, len(rule), number), *rule]
    return [*out, (AT_LEAST, 0, 1, UNIFORM), _give(UNKNOWN), _give(DENY)]


def _load(offset: int) -> Instruction:
    return LOAD, 0, 0, offset


def _argument(index: int, high: bool = False) -> Instruction:
    """Load half of an argument; both machines keep the lower half first."""
    return _load(ARGUMENTS + 8 * index + 4 * high)


def _give(verdict: int) -> Instruction:
    return RETURN, 0, 0, verdict


def _unless_bits(index: int, bits: int) -> list[Instruction]:
    return [_argument(index), (ANY_BIT, 0, 1, bits), _give(DENY), _give(ALLOW)]


def _if_one_of(index: int, values: Sequence[int]) -> list[Instruction]:
    tests = [(EQUAL, len(values) - k, 0, value) for k, value in enumerate(values)]
    return [_argument(index), *tests, _give(DENY), _give(ALLOW)]


def _if_null(index: int) -> list[Instruction]:
    tests = [(EQUAL, 0, 3, 0), _argument(index, high=True), (EQUAL, 0, 1, 0)]
    return [_argument(index), *tests, _give(ALLOW), _give(DENY)]
