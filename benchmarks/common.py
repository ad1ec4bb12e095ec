"""What every benchmark says about itself: machine, versions, command; a table on stdout, JSON on disk."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
REPOSITORY = Path(__file__).parents[1]
PIPELINE = REPOSITORY / "export" / "reference_model" / "pipeline"  # the built-in model's source, for diffusers


def cpu_name() -> str:
    """Give the processor's own name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def environment(packages: Sequence[str]) -> dict[str, Any]:
    """Describe this run: machine, versions and command."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"},
        "versions": versions,
        "command": " ".join(["python", "-m", module(), *sys.argv[1:]]),
    }


def module() -> str:
    """Name the module that was started, as ``python -m`` takes it."""
    spec = sys.modules["__main__"].__spec__
    return f"benchmarks.{Path(sys.argv[0]).stem}" if spec is None else spec.name.removesuffix(".__main__")


def write(name: str, results: dict[str, Any], packages: Sequence[str], folder: Path = RESULTS) -> Path:
    """Write ``benchmarks/results/NAME.json``, or into another folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(environment(packages) | {"results": results}, indent=1) + "\n", encoding="utf-8")
    return path


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Make a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
