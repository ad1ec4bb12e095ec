"""``edgediff export MODEL OUT``, or ``python -m edgediff_export MODEL OUT``."""

from __future__ import annotations

import argparse
import logging
import sys

from edgediff.errors import EdgediffError


def main() -> int:
    parser = argparse.ArgumentParser(prog="edgediff export", description="Turn a diffusers folder into a bundle.")
    parser.add_argument("model", help="a folder with model_index.json, as save_pretrained writes it")
    parser.add_argument("out", help="the bundle's folder (new or empty)")
    parser.add_argument(
        "--precision", default="fp16-weights", choices=("fp32", "fp16-weights"), help="default: fp16-weights"
    )
    parser.add_argument("--name", help="the bundle's name (default: the folder's)")
    parser.add_argument("--licence", default="", help="what the manifest says of the weights' licence")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    try:
        from .convert import export
    except ModuleNotFoundError as error:
        print(
            f"edgediff: {error.name} is not installed; install edgediff with its extras export and cpu "
            "(in its source folder: pip install '.[export,cpu]')",
            file=sys.stderr,
        )
        return 2

    def report(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        out = export(
            args.model, args.out, precision=args.precision, name=args.name, licence=args.licence, report=report
        )
    except EdgediffError as error:
        print(f"edgediff: {error}", file=sys.stderr)
        return 2
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
