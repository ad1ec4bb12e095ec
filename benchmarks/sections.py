"""Benchmarks of a GPU run in sections: each in a process of its own within a limit, with a report of its own.

So one that fails, crashes or hangs leaves the others alone.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import REPOSITORY, table

LATE = "no time left"


@dataclass
class Report:
    """What a section found: figures, checks that must hold, goals of speed, and the facts of its device."""

    figures: dict[str, Any] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    goals: list[dict[str, Any]] = field(default_factory=list)
    device: dict[str, Any] = field(default_factory=dict)

    def check(self, name: str, holds: bool, detail: Any = "") -> None:
        """Note whether something that must hold does."""
        self.checks.append({"name": name, "holds": bool(holds), "detail": detail})

    def goal(self, name: str, value: float, goal: str) -> None:
        """Note a figure beside its goal, which is ``>= 10`` or ``<= 5``."""
        met = value >= float(goal[2:]) if goal.startswith(">=") else value <= float(goal[2:])
        self.goals.append({"name": name, "value": round(value, 3), "goal": goal, "met": bool(met)})


class Section(NamedTuple):
    """A function of a module, which takes a report and what it measures, and the seconds that it may take."""

    module: str
    function: str
    seconds: float

    def load(self) -> Callable[..., None]:
        """Import the function."""
        loaded: Callable[..., None] = getattr(importlib.import_module(self.module), self.function)
        return loaded


def run_here(work: Callable[[Report], None]) -> dict[str, Any]:
    """Run a section in this process, and give its report as JSON; an exception is a check that failed."""
    start, report = time.perf_counter(), Report()
    try:
        work(report)
    except Exception as error:
        traceback.print_exc()
        report.figures["error"] = traceback.format_exc()[-4000:]
        report.check("runs to its end", False, f"{type(error).__name__}: {error}"[:1000])
    return asdict(report) | {"seconds": round(time.perf_counter() - start, 1)}


class Runner:
    """Runs the sections of a script one after the other, within a budget of time for all of them.

    Args:
        module: the script; with ``--section NAME --to FILE`` it must run that section and write its report.
        arguments: further ones for the script.
        seconds: the budget.
    """

    def __init__(self, module: str, arguments: list[str], seconds: float) -> None:
        self.command = [sys.executable, "-X", "faulthandler", "-m", module, *arguments]
        self.until = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """The seconds that are left of the budget."""
        return self.until - time.monotonic()

    def run(self, name: str, most: float, least: float) -> dict[str, Any]:
        """Run a section for ``most`` seconds at most; with less than ``least`` left it is not begun."""
        print(f"-- {name} ({self.left:.0f} s left)", flush=True)
        if self.left < least:
            return asdict(Report({"skipped": LATE}))
        with tempfile.TemporaryDirectory() as folder:
            to, seconds = Path(folder, "report.json"), min(most, self.left)
            code, output = run_command([*self.command, "--section", name, "--to", str(to)], seconds)
            print(output, end="", flush=True)
            found = json.loads(to.read_text(encoding="utf-8")) if to.exists() else {}
        if code in (0, 1) and found:
            return dict(found)
        report = Report({"output": output[-4000:]})
        report.check("ends well", False, how_it_ended(code, seconds))
        return asdict(report) | found | {"checks": [*found.get("checks", []), *report.checks]}


def how_it_ended(code: int | None, seconds: float) -> str:
    """Say of a process that ended badly how it did."""
    return f"ran past {seconds:.0f} s" if code is None else f"ended with code {code}"


def run_command(command: list[str], seconds: float) -> tuple[int | None, str]:
    """Give exit code and output of a command. After ``seconds`` it is ended with its children, and has no code."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        code = None
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return code, output.read()


def slug(name: str) -> str:
    """Shorten a GPU's name for a file: ``NVIDIA H100 80GB HBM3`` -> ``h100``."""
    words = [
        w for w in re.findall(r"[a-z0-9]+", name.lower()) if w != "nvidia" and not re.match(r"\d+gb|hbm|pcie|sxm", w)
    ]
    return "-".join(words) or "gpu"


def all_hold(found: Mapping[str, Any]) -> bool:
    """Tell whether no check of any section failed."""
    return all(c["holds"] for part in found.values() for c in part.get("checks", []))


def checks_and_goals(found: Mapping[str, Any]) -> list[str]:
    """Make tables of the sections, of the checks that failed, and of the goals."""
    rows = []
    for name, part in found.items():
        checks = part.get("checks", [])
        rows.append([name, f"{sum(c['holds'] for c in checks)} of {len(checks)}", f"{part.get('seconds', '')}"])
    parts = [table(["section", "checks that hold", "s"], rows)]
    failed = [(name, c) for name, part in found.items() for c in part.get("checks", []) if not c["holds"]]
    if failed:
        parts.append(
            table(["section", "failed", "detail"], [[n, c["name"], str(c["detail"])[:300]] for n, c in failed])
        )
    goals = [
        [g["name"], g["value"], g["goal"], "yes" if g["met"] else "no"]
        for part in found.values()
        for g in part.get("goals", [])
    ]
    if goals:
        parts.append(table(["goal", "value", "wanted", "met"], goals))
    return parts
