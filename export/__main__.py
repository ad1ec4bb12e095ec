"""The command ``edgediff export MODEL OUT``, or ``python -m edgediff_export MODEL OUT``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgediff.cli import main as cli
from edgediff.cli.options import named_file, size
from edgediff.engines.tensorrt.installed import building_platform
from edgediff.errors import ArgumentError, EdgediffError, EngineError

from .versions import check_versions

LAYOUTS = ("edgediff", "optimum")
PRECISIONS = """\
  fp32           as torch computes
  fp16           for GPUs; nodes that fp16 cannot hold, or that lose too much, stay in fp32
  fp16-weights   weights stored in fp16, computed in fp32: half the file (default)
  int8           weights of convolutions and linears stored in int8, computed in fp32: a quarter of the memory
  int8-dynamic   linears multiplied in int8: the fastest on CPUs
Every precision is held against torch, part by part and by pictures; an export that falls below its floor fails.
"""


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    logging.disable(logging.WARNING)
    try:
        check_versions()
        from .convert import export
        from .optimum_layout.write import export_optimum
        from .progress import print_line
    except EngineError as error:
        print(f"edgediff: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(
            f"edgediff: {error.name} is not installed; install edgediff with its extras export and cpu "
            "(in its source folder: pip install '.[export,cpu]')",
            file=sys.stderr,
        )
        return 2
    try:
        if args.build:
            check_build(args)
        exporting = export if args.layout == "edgediff" else export_optimum
        out = exporting(args.model, args.out, report=print_line, bar=True, **arguments(args))
    except EdgediffError as error:
        print(f"edgediff: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("edgediff: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    if peak := _peak_memory():
        print_line(f"peak memory {peak / 1e9:.2f} GB")
    print(out)
    return cli.main(["build", str(out)]) if args.build else 0


def check_build(args: argparse.Namespace) -> None:
    """Raise where engine files could not be built afterwards, before hours of work."""
    if args.layout != "edgediff":
        raise ArgumentError(f"--build needs a bundle; layout is {args.layout!r}")
    if args.precision != "fp16":
        raise ArgumentError(f"--build needs --precision fp16, which TensorRT follows; precision is {args.precision!r}")
    building_platform(0)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="edgediff export",
        description="Turn a checkpoint of the Stable Diffusion family into a bundle.",
        epilog="precisions:\n" + PRECISIONS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = top.add_argument
    add("model", help="a folder with model_index.json, or one .safetensors file in the original layout")
    add("out", help="the bundle's folder (new or empty)")
    add("--precision", default="fp16-weights", metavar="P", help="see below")
    add("--part-precision", action="append", default=[], metavar="PART=P", help="another precision for one part")
    add("--lora", action="append", default=[], metavar="FILE[:WEIGHT]", help="merge a LoRA (weight 1); repeatable")
    add("--embedding", action="append", default=[], metavar="[WORD=]FILE", help="carry a textual inversion; repeatable")
    add("--config", metavar="FOLDER", help="a diffusers folder whose configs stand for those that a file lacks")
    add("--vae", metavar="PATH", help="another autoencoder: a folder (AutoencoderKL or AutoencoderTiny) or a file")
    add("--vae-shift", action="store_true", help="decode with the autoencoder's shift_factor")
    add("--preview-decoder", metavar="FOLDER", help="an AutoencoderTiny that draws previews")
    add("--prediction-type", metavar="T", help="of a file that does not say: epsilon or v_prediction")
    add("--size", metavar="WxH", help="the bundle's default size (default: the model's)")
    add("--steps", type=int, metavar="N", help="its default number of steps")
    add("--guidance-scale", type=float, metavar="G", help="its default guidance scale")
    add("--sampler", metavar="S", help="its default sampler")
    add("--floor", type=float, metavar="DB", help="least PSNR of the pictures, in place of the precision's")
    add("--build", action="store_true", help="then build TensorRT engines for this machine's GPU (as edgediff build)")
    add("--layout", default="edgediff", choices=LAYOUTS, help="edgediff (a bundle; default), or optimum (its folders)")
    add("--name", help="the bundle's name (default: the model's)")
    add("--licence", default="", help="what the manifest says of the weights' licence")
    return top


def arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Turn the command line's options into arguments of ``export``."""
    defaults: dict[str, Any] = {
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance_scale,
        "sampler": args.sampler,
    }
    if args.size is not None:
        defaults["width"], defaults["height"] = size(args.size)
    return {
        "precision": args.precision,
        "part_precision": dict(_pair(text) for text in args.part_precision),
        "loras": [_weighed(text) for text in args.lora],
        "embeddings": [named_file(text) for text in args.embedding],
        "config": args.config,
        "vae": args.vae,
        "vae_shift": args.vae_shift,
        "preview_decoder": args.preview_decoder,
        "prediction_type": args.prediction_type,
        "floor": args.floor,
        "defaults": {k: v for k, v in defaults.items() if v is not None},
        "name": args.name,
        "licence": args.licence,
    }


def _pair(text: str) -> tuple[str, str]:
    """Split ``PART=P``."""
    part, equals, precision = text.partition("=")
    if not equals:
        raise ArgumentError(f"part-precision is {text!r}; write it as PART=PRECISION, for example vae_decoder=fp32")
    return part, precision


def _weighed(text: str) -> tuple[Path, float]:
    """Split ``FILE:0.8``; a path may hold a colon itself."""
    path, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        return Path(path), float(weight)
    except ValueError:
        return Path(text), 1.0


def _peak_memory() -> int:
    """Ask how many bytes this process has held at most; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    sys.exit(main())
