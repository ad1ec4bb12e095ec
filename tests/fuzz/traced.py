"""``python -m tests.fuzz.traced``: bundles are fuzzed under ``strace``, which sees what native libraries open, too."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from .bundles import DATA
from .watching import SYSTEM, libraries

CALLS = "openat,open,openat2,creat,socket,connect,execve,unlink,unlinkat,rename,renameat,renameat2,link,symlink"
# What the loader, glibc, ONNX Runtime and OpenMP read when they start.
STARTING = ("/etc/ld.so.cache", "/etc/locale", "/usr/share/locale", "/etc/ssl/openssl.cnf", "/usr/lib64")
STARTING += (
    "/proc/sys/",
    "/proc/filesystems",
    "/proc/mounts",
    "/sys/devices/",
    "/sys/kernel/mm/",
    "/sys/bus/pci/devices/",
)
CALL = re.compile(r"^(?:\d+ +)?(?P<name>\w+)\((?P<arguments>.*)\) = (?P<value>-?\d+)(?:<(?P<path>[^>]*)>)?")


def is_outside(name: str, arguments: str, path: str, places: tuple[str, ...]) -> bool:
    """Whether a call that succeeded reached out of these places."""
    if name in ("openat", "open", "openat2", "creat"):
        own = re.sub(r"^/proc/\d+/", "/proc/self/", path) if '"/proc/self/' in arguments else path
        return path != "" and not f"{own}/".startswith(places)
    if name == "socket":
        return "AF_UNIX" not in arguments
    if name in ("connect", "execve"):
        return True
    return '"/' in arguments and not any(f'"{place}' in arguments for place in places)


def strangers(log: Path, places: tuple[str, ...]) -> tuple[int, list[str]]:
    """How many calls a log holds, and those that succeeded outside of these places."""
    count, found = 0, []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        match = CALL.match(line)
        if match is None:
            continue
        count += 1
        if int(match["value"]) >= 0 and is_outside(match["name"], match["arguments"], match["path"] or "", places):
            found.append(line)
    return count, found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.traced", description=__doc__)
    parser.add_argument("--cases", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="S")
    parser.add_argument("--out", type=Path, metavar="FILE", help="figures, as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="traced-") as work:
        log = Path(work) / "strace.log"
        inside = Path(work) / "tmp"
        inside.mkdir()
        fuzzing = [sys.executable, "-m", "tests.fuzz", "bundles", "--jobs", "1"]
        fuzzing += ["--cases", str(args.cases), "--seed", str(args.seed)]
        command = ["strace", "-f", "-y", "-qq", "-e", f"trace={CALLS}", "-o", str(log), *fuzzing]
        code = subprocess.run(command, env={**os.environ, "TMPDIR": str(inside)}, check=False).returncode
        known = [str(path) for path in (inside, DATA, *libraries())]
        count, found = strangers(log, tuple(f"{os.path.realpath(path)}/" for path in known) + SYSTEM + STARTING)
        starts = [line for line in found if "execve(" in line]
        found = [line for line in found if line not in starts[:1]]
    if args.out is not None:
        figures = {"cases": args.cases, "calls": count, "outside": len(found)}
        args.out.write_text(json.dumps(figures) + "\n", encoding="utf-8")
    print(f"{args.cases} cases, {count} calls, {len(found)} outside")
    for line in found[:20]:
        print(f"  {line[:300]}")
    return 1 if found else code


if __name__ == "__main__":
    sys.exit(main())
