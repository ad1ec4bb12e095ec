"""The command ``edgediff adopt FOLDER BUNDLE``, or ``python -m edgediff_export.adopting FOLDER BUNDLE``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from edgediff.errors import ArgumentError, EdgediffError, printable


def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        from ..progress import print_line
        from .adopt import adopt
    except ModuleNotFoundError as error:
        print(
            f"edgediff: {error.name} is not installed; install edgediff with its extras adopt and cpu "
            "(in its source folder: pip install '.[adopt,cpu]')",
            file=sys.stderr,
        )
        return 2
    try:
        by_part = dict(_pair(text) for text in args.part_precision)
        out = adopt(
            args.folder,
            args.bundle,
            precision=args.precision,
            part_precision=by_part,
            name=args.name,
            licence=args.licence,
            report=print_line,
            bar=True,
        )
    except EdgediffError as error:
        print(f"edgediff: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("edgediff: interrupted", file=sys.stderr)
        return 130
    print(out)
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="edgediff adopt",
        description="Make a bundle of a folder of ONNX graphs that optimum or Olive wrote. Torch is not needed.",
    )
    add = top.add_argument
    add("folder", metavar="FOLDER", help="the folder, with PART/model.onnx")
    add("bundle", metavar="BUNDLE", help="the bundle's folder (new or empty)")
    add(
        "--precision",
        default="fp32",
        metavar="P",
        help="fp32 (as it is; default), fp16, fp16-weights, int8, int8-dynamic",
    )
    add("--part-precision", action="append", default=[], metavar="PART=P", help="another precision for one part")
    add("--name", help="the bundle's name (default: the folder's)")
    add("--licence", default="", help="what the manifest says of the weights' licence")
    return top


def _pair(text: str) -> tuple[str, str]:
    part, equals, precision = text.partition("=")
    if not equals:
        raise ArgumentError(f"part-precision is {text!r}; write it as PART=PRECISION, for example vae_decoder=fp32")
    return part, precision


if __name__ == "__main__":
    sys.exit(main())
