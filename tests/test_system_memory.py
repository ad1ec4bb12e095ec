"""What the system says of its memory, read from trees like Linux's /proc and /sys/fs/cgroup, and from this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgediff.errors import EngineError, MemoryLimitError
from edgediff.system_memory import free_memory, memory_named

MB = 1 << 20


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A machine with 1000 MB to spare, and 50 of swap; no control groups, nothing of the process."""
    text = f"MemTotal: {2000 * 1024} kB\nMemAvailable:  {1000 * 1024} kB\nSwapFree: {50 * 1024} kB\n"
    return tree(tmp_path / "proc", {"meminfo": text})


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")


@linux
def test_the_machine(proc: Path, tmp_path: Path) -> None:
    assert free_memory(proc=proc, groups=tmp_path) == 1000 * MB
    assert free_memory(swap=True, proc=proc, groups=tmp_path) == 1050 * MB


@linux
def test_control_groups_of_version_2_count_with_those_around_them(proc: Path, tmp_path: Path) -> None:
    """Pages of files that can be dropped are free; "max" is no limit."""
    tree(proc, {"self/cgroup": "0::/service/worker\n"})
    groups = tree(
        tmp_path / "cgroup",
        {
            "service/memory.max": f"{300 * MB}\n",
            "service/memory.current": f"{120 * MB}\n",
            "service/memory.stat": f"anon 7\ninactive_file {12 * MB}\nactive_file {8 * MB}\n",
            "service/worker/memory.max": "max\n",
            "service/worker/memory.current": f"{100 * MB}\n",
        },
    )
    assert free_memory(proc=proc, groups=groups) == 200 * MB
    tree(groups, {"service/worker/memory.max": f"{90 * MB}\n"})
    assert free_memory(proc=proc, groups=groups) == 0  # it has more than it may


@linux
def test_control_groups_of_version_1(proc: Path, tmp_path: Path) -> None:
    tree(proc, {"self/cgroup": "3:cpu,cpuacct:/\n4:memory:/box\n0::/\n"})
    files = {"memory.limit_in_bytes": f"{400 * MB}", "memory.usage_in_bytes": f"{100 * MB}"}
    groups = tree(tmp_path / "cgroup", {f"memory/box/{name}": text for name, text in files.items()})
    tree(groups, {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "1"})
    assert free_memory(proc=proc, groups=groups) == 300 * MB
    inside = tree(tmp_path / "inside", {f"memory/{name}": text for name, text in files.items()})
    assert free_memory(proc=proc, groups=inside) == 300 * MB  # a container sees its own group as the root


@linux
def test_nothing_tells(tmp_path: Path) -> None:
    assert free_memory(proc=tmp_path, groups=tmp_path) is None
    tree(tmp_path, {"meminfo": "MemAvailable: lots\n", "self/cgroup": "\x00nonsense\n:::\n0::/\n"})
    assert free_memory(proc=tmp_path, groups=tmp_path) is None


@linux
def test_a_limit_of_this_process_counts() -> None:
    """By the real calls, in a process of its own."""
    code = (
        "import re, resource\n"
        "from edgediff.system_memory import free_memory\n"
        "before = free_memory()\n"
        "size = int(re.search(r'VmSize:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + 200_000_000, resource.RLIM_INFINITY))\n"
        "assert before > 200_000_000, before\n"
        "assert 150_000_000 < free_memory() <= 200_000_000, free_memory()\n"
        "assert free_memory(swap=True) <= 200_000_000\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_memory_and_stack_are_named() -> None:
    with (
        pytest.raises(MemoryLimitError, match=r"^memory ran out while knitting \(too \\x1b much\); fewer or smaller"),
        memory_named("knitting"),
    ):
        raise MemoryError("too \x1b much")
    with (
        pytest.raises(EngineError, match=r"^Python's stack ended while knitting; .*\(it is \d+\)"),
        memory_named("knitting"),
    ):
        raise RecursionError
    with pytest.raises(MemoryLimitError, match=r"^as it was$"), memory_named("knitting"):
        raise MemoryLimitError("as it was")
