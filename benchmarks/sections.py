"""What benchmarks of a GPU are made of: sections in processes of their own, what they find, and how it is shown."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.common import REPOSITORY, table


@dataclass
class Report:
    """What a section found: figures, checks that must hold, goals of speed."""

    figures: dict[str, Any] = field(default_factory=dict)
    checks: list[dict[str, Any]] = field(default_factory=list)
    goals: list[dict[str, Any]] = field(default_factory=list)

    def check(self, name: str, holds: bool, detail: Any = "") -> None:
        self.checks.append({"name": name, "holds": bool(holds), "detail": detail})

    def goal(self, name: str, value: float, goal: str) -> None:
        """``goal`` is ``>= 10`` or ``<= 5``."""
        met = value >= float(goal[2:]) if goal.startswith(">=") else value <= float(goal[2:])
        self.goals.append({"name": name, "value": round(value, 3), "goal": goal, "met": bool(met)})


def guarded(findings: Report, work: Callable[[], Any]) -> dict[str, Any]:
    """What ``work`` found, as JSON; an exception is a check that failed."""
    start = time.perf_counter()
    try:
        work()
    except Exception as error:
        traceback.print_exc()
        findings.figures["error"] = traceback.format_exc()[-4000:]
        findings.check("runs to its end", False, f"{type(error).__name__}: {error}"[:1000])
    return asdict(findings) | {"seconds": round(time.perf_counter() - start, 1)}


def called(command: list[str], seconds: float) -> tuple[int | None, str]:
    """Exit code (None: it ran past ``seconds`` and was ended with its children) and output of a command."""
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


def ended(found: dict[str, Any], code: int | None, output: str, seconds: float) -> dict[str, Any]:
    """What a child's section found, and that it ended badly where it did."""
    if code in (0, 1) and found:
        return found
    findings = Report({"output": output[-4000:]})
    findings.check("ends well", False, f"ran past {seconds:.0f} s" if code is None else f"ended with code {code}")
    return asdict(findings) | found | {"checks": [*found.get("checks", []), *findings.checks]}


def slug(name: str) -> str:
    """``NVIDIA H100 80GB HBM3`` -> ``h100``."""
    words = [
        w for w in re.findall(r"[a-z0-9]+", name.lower()) if w != "nvidia" and not re.match(r"\d+gb|hbm|pcie|sxm", w)
    ]
    return "-".join(words) or "gpu"


def all_hold(found: dict[str, Any]) -> bool:
    """Whether no check of any section failed."""
    return all(c["holds"] for part in found.values() for c in part.get("checks", []))


def checks_and_goals(found: dict[str, Any]) -> list[str]:
    """Tables of the sections, of the checks that failed and of the goals."""
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
