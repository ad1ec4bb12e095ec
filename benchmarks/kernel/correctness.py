"""The tests of tests/device/gpu on the GPU at hand, plainly and under compute-sanitizer's tools, as sections."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks.sections import LATE, Report, Runner, how_it_ended, run_command

TESTS = {  # section: (file of tests/device/gpu, seconds at most)
    "samplers": ("test_samplers.py", 100),
    "noise": ("test_noise.py", 60),
    "bad_input": ("test_bad_input.py", 45),
}
SMALL = "test_few.py"  # what the sanitizer's tools run, which are slow
TOOLS = ("memcheck", "initcheck", "racecheck", "synccheck")
TOOL_S, LEAST_S = 60, 5


def pytest_command(file: str, to: Path) -> list[str]:
    """Run the tests of a file that need a GPU, and write their outcome."""
    options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", "-o", "junit_family=xunit1", f"--junitxml={to}"]
    return [sys.executable, "-X", "faulthandler", "-m", "pytest", *options, f"tests/device/gpu/{file}"]


def read_outcome(report: Report, to: Path) -> None:
    """Make each test a check; what a test recorded becomes figures, and so do the reasons of skips."""
    cases = list(ElementTree.parse(to).iter("testcase")) if to.exists() else []
    skipped: dict[str, str] = {}
    for case in cases:
        name = case.get("name", "")
        if (skip := case.find("skipped")) is not None:
            skipped[name] = skip.get("message", "")
            continue
        bad = [found for kind in ("failure", "error") if (found := case.find(kind)) is not None]
        report.check(name, not bad, bad[0].get("message", "") if bad else f"{float(case.get('time', 0)):.1f} s")
        if recorded := {p.get("name", ""): p.get("value", "") for p in case.iter("property")}:
            report.figures[name] = recorded
    if skipped:
        report.figures["tests_skipped"] = skipped
    report.check("tests ran", len(cases) > len(skipped), f"{len(cases)} tests, {len(skipped)} skipped")


def run_tests(report: Report, file: str, seconds: float) -> None:
    """Run a file of tests in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder, "outcome.xml")
        code, output = run_command(pytest_command(file, to), seconds)
        print(output, end="", flush=True)
        read_outcome(report, to)
        if code != 0:
            report.figures["output"] = output[-4000:]
            report.check("ends well", False, how_it_ended(code, seconds))


def sanitize(report: Report, runner: Runner) -> None:
    """Run a few tests under each of compute-sanitizer's tools."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        report.figures["skipped"] = "compute-sanitizer is not on PATH"
        return
    with tempfile.TemporaryDirectory() as folder:
        for tool in TOOLS:
            seconds = min(TOOL_S, runner.left)
            if seconds < LEAST_S:
                report.figures[tool] = {"skipped": LATE}
                continue
            to, start = Path(folder, f"{tool}.xml"), time.monotonic()
            code, output = run_command([program, "--tool", tool, *pytest_command(SMALL, to)], seconds)
            lines = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", output)
            summary = lines[-1] if lines else "no summary"
            figures = {"summary": summary, "exit_code": code, "seconds": round(time.monotonic() - start, 1)}
            report.figures[tool] = figures
            refused = next((line for line in output.splitlines() if "not supported" in line.lower()), "")
            if code is None:
                figures["skipped"] = how_it_ended(code, seconds)
            elif refused and not to.exists():
                figures["skipped"] = refused
            else:
                tests = Report()
                read_outcome(tests, to)
                good = bool(re.match(r"0 (errors|hazards)", summary)) and code == 0
                report.check(tool, good and all(check["holds"] for check in tests.checks), summary)
                if not good:
                    figures["output"] = output[-4000:]
