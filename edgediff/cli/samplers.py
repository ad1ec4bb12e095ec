"""``edgediff samplers``: the names of samplers and spacings."""

from __future__ import annotations

import argparse
from typing import Any

from ..sampling.samplers import SAMPLERS
from ..sampling.schedule import SPACINGS


def add(commands: Any) -> None:
    """Add the command, which has no options."""
    p = commands.add_parser("samplers", help="list samplers and spacings")
    p.set_defaults(run=list_samplers)


def list_samplers(args: argparse.Namespace) -> None:
    """Print a line a sampler: its name, A1111's label, and what sets it apart; then the spacings."""
    for name, sampler in SAMPLERS.items():
        facts = [text for yes, text in ((sampler.eta, "takes eta"), (sampler.memoryless, "takes cfg++")) if yes]
        print(f"{name:<16}{sampler.label:<18}{', '.join(facts)}".rstrip())
    print(f"spacings: {', '.join(SPACINGS)}")
