"""``edgediff plan``: the table of numbers that a sampler is."""

from __future__ import annotations

import argparse
from typing import Any

from ..bundle.reading import read_bundle
from ..generation.arguments import Arguments
from ..generation.request import plan_for
from ..sampling.planning import GUIDANCES
from .options import add_plan_arguments, plan_arguments


def add(commands: Any) -> None:
    """Add the command and its own options."""
    p = commands.add_parser("plan", help="print the table of numbers that a sampler is")
    add_plan_arguments(p)
    p.set_defaults(run=show_plan)


def show_plan(args: argparse.Namespace) -> None:
    """Print the table of a run on a model."""
    bundle = read_bundle(args.model)
    plan = plan_for(bundle, Arguments(**plan_arguments(args)))
    print(
        f"{plan.label}, {plan.spacing} spacing, {bundle.schedule.prediction_type}, "
        f"starting noise x {plan.start:.6g}\n"
        "x' = a*x + bu*u + bc*c + sum_k wk*h_k + d*noise;  h = p*x + qu*u + qc*c"
    )
    if args.guidance not in GUIDANCES:
        print(
            f"{args.guidance} makes one output m of u and c, between the U-Net and the row, which then reads "
            "(bu + bc)*m and (qu + qc)*m"
        )
    print(plan)
