"""``edgediff export``: the export stage's own command, in a process that may load torch."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Sequence
from typing import Any

from ..errors import EngineError
from ..python_child import command, environment


def add(commands: Any) -> None:
    """Name the command in the list; its options are the export stage's."""
    commands.add_parser("export", help="turn a diffusers folder into a bundle (needs the export extra)", add_help=False)


def hand_over(arguments: Sequence[str]) -> int:
    """Run the export stage with these arguments; returns its exit code."""
    return run_module("edgediff_export", arguments)


def run_module(module: str, arguments: Sequence[str]) -> int:
    """Run a module of the export stage in a process of its own; returns its exit code.

    Raises:
        EngineError: the stage is not installed.
    """
    if importlib.util.find_spec("edgediff_export") is None:
        raise EngineError("the export stage is not installed; install edgediff with its extras export and cpu")
    return subprocess.run(command(module, *arguments), env=environment(), check=False).returncode
