"""Options that several commands take, and how their texts are read."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from ..engines.base import DEVICES
from ..engines.choose import engine_words
from ..errors import ArgumentError, shown
from ..sampling.samplers import SAMPLERS
from ..sampling.schedule import SPACINGS


def size(text: str, name: str = "size") -> tuple[int, int]:
    """``64x64`` -> (width, height)."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and len(width) <= 9 and len(height) <= 9):
        raise ArgumentError(f"{name} is {shown(text, 40)}; write it as WIDTHxHEIGHT, for example 64x64")
    return int(width), int(height)


def amount_of(text: str, name: str) -> int:
    """``4GB``, ``512MB`` or ``1.5 GiB`` -> bytes."""
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?([KMGT])(I?)B", text.strip().upper(), re.ASCII)
    if match is None:
        raise ArgumentError(f"{name} is {shown(text[:40])}; write it with its unit, for example 4GB, 512MB or 1.5GiB")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** (1 + "KMGT".index(match[2])))


def numbers(name: str, text: str | None) -> list[float] | None:
    """``7,5.5,3`` -> its numbers."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ArgumentError(
            f"{name} is {shown(text, 40)}; it must be a number, or several with commas between"
        ) from error


def named_file(text: str) -> tuple[str | None, str]:
    """``[WORD=]FILE`` -> (word, file). A path that is there may hold the sign itself."""
    word, equals, file = text.partition("=")
    return (word, file) if equals and not Path(text).exists() else (None, text)


def add_engine_cache(p: argparse.ArgumentParser) -> None:
    """Add the option that says where TensorRT engine files are."""
    p.add_argument(
        "--engine-cache", metavar="DIR", help="folder of TensorRT engine files (default: $EDGEDIFF_CACHE, or a cache)"
    )


def add_engine(p: argparse.ArgumentParser) -> None:
    """Add the options that say what runs the parts."""
    p.add_argument("--device", default="cpu", metavar="D", help=", ".join(DEVICES))
    p.add_argument(
        "--engine",
        metavar="E",
        help=f"{', '.join(engine_words())} (builds what is missing meanwhile; default: what was built, else onnx)",
    )
    add_engine_cache(p)
    p.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: one a physical core)")
    p.add_argument("--no-cuda-graphs", action="store_true", help="on a GPU, capture no work as graphs")
    p.add_argument("--release-parts", action="store_true", help="hold one part in memory at a time")
    p.add_argument(
        "--memory-limit",
        metavar="SIZE",
        help="refuse calls that would take more, for example 4GB (default: what is free)",
    )
    p.add_argument(
        "--isolated",
        action="store_true",
        help="run what reads the bundle in a child process with limits and without network (for bundles of strangers)",
    )


def engine_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """What ``add_engine`` adds, under the names of ``edgediff.load``."""
    names = ("device", "engine", "threads", "engine_cache", "release_parts", "isolated")
    limit = None if args.memory_limit is None else amount_of(args.memory_limit, "memory-limit")
    own = {name: getattr(args, name) for name in names}
    return {**own, "memory_limit": limit, "cuda_graphs": not args.no_cuda_graphs}


def add_plan_arguments(p: argparse.ArgumentParser) -> None:
    """Add the options that a sampler's table depends on."""
    p.add_argument("--model", metavar="BUNDLE", help="a bundle's folder (default: the built-in emoji model)")
    p.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="steps; some samplers call the U-Net twice in one (default: the model's)",
    )
    p.add_argument(
        "--guidance-scale",
        metavar="G",
        help="1 or less turns guidance off; G,G,... is one a step (default: the model's)",
    )
    p.add_argument(
        "--sampler",
        metavar="S",
        help=f"{', '.join(SAMPLERS)}; diffusers' class names and A1111's labels work too (default: the model's)",
    )
    p.add_argument("--spacing", metavar="K", help=f"{', '.join(SPACINGS)} (default: the sampler's or the model's)")
    p.add_argument("--timesteps", metavar="T,T,...", help="explicit timesteps in place of a spacing")
    p.add_argument("--sigmas", metavar="V,V,...", help="explicit noise levels, in place of a spacing")
    p.add_argument("--eta", type=float, metavar="E", help="share of fresh noise, for samplers that take it")
    p.add_argument(
        "--guidance",
        default="cfg",
        metavar="M",
        help="cfg; cfg++ (G is then 0 .. 1, default 0.6; for samplers without history); or apg (default: cfg)",
    )
    p.add_argument("--guidance-interval", metavar="A,B", help="shares of the run, 0 .. 1, between which guidance is on")


def plan_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """What ``add_plan_arguments`` adds, under the names of ``Arguments``."""
    scale = numbers("guidance-scale", args.guidance_scale)
    interval = numbers("guidance-interval", args.guidance_interval)
    return {
        "sampler": args.sampler,
        "num_inference_steps": args.steps,
        "guidance_scale": scale[0] if scale is not None and len(scale) == 1 else scale,
        "spacing": args.spacing,
        "eta": args.eta,
        "guidance": args.guidance,
        "guidance_interval": None if interval is None else tuple(interval),
        "timesteps": numbers("timesteps", args.timesteps),
        "sigmas": numbers("sigmas", args.sigmas),
    }
