"""``edgediff adopt`` makes a bundle of another exporter's folder, by the export stage and without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .export import run_module

MODULE = "edgediff_export.adopting"


def add(commands: Any) -> None:
    """Name the command in the list; its options are the export stage's."""
    commands.add_parser(
        "adopt", help="make a bundle of a folder of ONNX graphs that optimum or Olive wrote", add_help=False
    )


def hand_over(arguments: Sequence[str]) -> int:
    """Run the adoption with these arguments; returns its exit code."""
    return run_module(MODULE, arguments)
