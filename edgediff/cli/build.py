"""``edgediff build`` builds TensorRT engine files of a bundle, on the GPU that shall run them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..bundle.reading import read_bundle
from ..cache_folder import default_cache_folder
from ..engines.base import check_device
from ..engines.tensorrt.build import build_part, describe_engine
from ..engines.tensorrt.cache import EngineCache
from ..engines.tensorrt.installed import building_platform
from ..engines.tensorrt.options import COMPATIBLE, BuildOptions
from ..engines.tensorrt.profiles import CHUNKS, Ranges
from ..errors import ArgumentError, choices
from .options import add_engine_cache, size
from .progress import bar


def add(commands: Any) -> None:
    """Add the command's own options."""
    p = commands.add_parser("build", help="build TensorRT engine files of a bundle, on the GPU that shall run them")
    p.add_argument("bundle", metavar="BUNDLE")
    p.add_argument("--part", action="append", metavar="PART", help="repeatable (default: all that a call needs)")
    p.add_argument("--images", type=int, default=1, metavar="N", help="most pictures at once (default: 1)")
    p.add_argument("--size", metavar="WxH", help="the size that engines are fastest at (default: the bundle's)")
    p.add_argument(
        "--sizes", metavar="WxH..WxH", help="the range they take (default: --size alone; else half to 1.5 of it)"
    )
    p.add_argument(
        "--chunks", type=int, default=CHUNKS, metavar="N", help=f"most chunks of 77 tokens a prompt (default: {CHUNKS})"
    )
    p.add_argument("--workspace", type=int, metavar="MB", help="GPU memory that a kernel may take (default: all)")
    p.add_argument("--level", type=int, metavar="L", help="0 .. 5: how long to look for fast kernels (default: 3)")
    p.add_argument(
        "--hardware", default="none", metavar="H", help=f"{', '.join(COMPATIBLE)}: other GPUs to run on (default: none)"
    )
    p.add_argument("--version-compatible", action="store_true", help="newer TensorRTs may run the engine files")
    p.add_argument("--stripped", action="store_true", help="leave the weights out: they come from the ONNX files")
    p.add_argument("--memory", type=int, metavar="MB", help="host memory for a build (default: 90 %% of what is free)")
    p.add_argument("--device", default="cuda", metavar="D", help="cuda, cuda:N (default: cuda)")
    add_engine_cache(p)
    p.add_argument("--force", action="store_true", help="build again what is there")
    p.set_defaults(run=build)


def build(args: argparse.Namespace) -> None:
    bundle = read_bundle(args.bundle)
    ordinal = check_device(args.device)
    if ordinal is None:
        raise ArgumentError(f"device is {args.device!r}; engine files are built on cuda, or cuda:N")
    parts = args.part or list(dict.fromkeys(("unet", *bundle.needed)))
    if unknown := [part for part in parts if part not in bundle.parts]:
        raise ArgumentError(f"bundle {bundle.name!r} has no part {unknown[0]!r}; choose from {choices(bundle.parts)}")
    least, best, most = (None if t is None else size(t, n) for n, t in sizes_of(args))
    options = BuildOptions(
        Ranges(args.images, least, best, most, args.chunks),
        workspace=None if args.workspace is None else args.workspace << 20,
        level=args.level,
        hardware=args.hardware,
        version_compatible=args.version_compatible,
        stripped=args.stripped,
        memory_limit=None if args.memory is None else args.memory << 20,
    )
    platform = building_platform(ordinal)
    cache = EngineCache(Path(args.engine_cache) if args.engine_cache else default_cache_folder())
    orders = [(part, *describe_engine(bundle, part, options, platform)) for part in parts]  # all errors before any work
    for part, source, described in orders:
        there = [built for built in cache.find(source, part, platform)[0] if built.key == described.key]
        done = there[0] if there and not args.force else None
        if done is None:
            with bar(part) as draw:
                done = build_part(
                    bundle, part, options, platform, cache, ordinal, progress=lambda _, share, phase: draw(share, phase)
                )
            print(f"built {done.path} ({done.size / 1e6:.1f} MB, {done.seconds:.0f} s)", flush=True)
        else:
            print(f"there {done.path} ({done.size / 1e6:.1f} MB)", flush=True)


def sizes_of(args: argparse.Namespace) -> list[tuple[str, str | None]]:
    """Read ``--sizes 256x256..768x768`` and ``--size`` as least, best and largest; a size alone is all three."""
    if args.sizes is None:
        return [("size", args.size)] * 3
    least, dots, most = args.sizes.partition("..")
    if not dots:
        raise ArgumentError(f"sizes is {args.sizes[:40]!r}; write it as WxH..WxH, for example 256x256..768x768")
    return [("sizes", least), ("size", args.size), ("sizes", most)]
