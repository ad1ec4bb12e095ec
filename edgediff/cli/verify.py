"""``edgediff verify``: every checksum, then every part against what torch gave at export."""

from __future__ import annotations

import argparse
from typing import Any

from ..bundle.reading import read_bundle
from ..errors import BundleError, shown
from ..loading import load
from ..verify import check_provable, prove, reference
from .options import add_engine, engine_arguments
from .printing import say


def add(commands: Any) -> None:
    """Add the command and its own options."""
    p = commands.add_parser("verify", help="check every file, and run the parts against what torch gave at export")
    p.add_argument("bundle", nargs="?", metavar="BUNDLE", help="default: the built-in emoji model")
    p.add_argument("--files", action="store_true", help="checksums alone")
    add_engine(p)
    p.set_defaults(run=verify)


def verify(args: argparse.Namespace) -> None:
    """Print a line a check. Raises ``BundleError`` where one failed."""
    bundle = read_bundle(args.bundle)
    check_provable(bundle)
    broken = 0
    for name, file in bundle.files():
        try:
            bundle.path(name, file)
            say(f"ok  {name:<16}{file.path}  {file.sha256}")
        except BundleError as error:
            broken += 1
            say(f"BAD {name:<16}{file.path}  {error}")
    if broken:
        raise BundleError(
            f"{broken} of {len(bundle.files())} files of bundle {shown(bundle.name)} are missing, damaged or unreadable"
        )
    if args.files or bundle.golden is None:
        if not args.files:
            say(f"not proved: bundle {shown(bundle.name)} holds no golden tensors")
        return
    failed = 0
    for finding in prove(load(args.bundle, **engine_arguments(args))):
        failed += not finding.ok
        say(f"{'ok ' if finding.ok else 'BAD'} {finding.what:<16}{finding.detail}")
    if failed:
        whose = f"{reference(bundle)}'s golden tensors"
        raise BundleError(f"{failed} checks of bundle {shown(bundle.name)} against {whose} failed")
