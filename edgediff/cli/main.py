"""The command ``edgediff``. Exit codes: 0 done, 2 bad input (said on stderr), 130 interrupted, 141 pipe closed."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from ..errors import ArgumentError, EdgediffError, PromptWarning
from ..version import __version__
from . import adopt, build, export, generate, info, plan, samplers, verify

COMMANDS = (generate, samplers, plan, info, build, verify, export, adopt)
HANDED_OVER = {"export": export.hand_over, "adopt": adopt.hand_over}  # whose options are the export stage's


class Parser(argparse.ArgumentParser):
    """This parser raises one line an error, as everything else does."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message}; see {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    top = Parser(prog="edgediff", description="Latent diffusion on the edge: NumPy and an engine.")
    top.add_argument("--version", action="version", version=f"edgediff {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return top


def _drop_stdout() -> None:
    """Keep the interpreter from flushing, and failing, once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def show_warning(message: Warning | str, *_: object) -> None:
        print(f"edgediff: warning: {message}", file=sys.stderr)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", PromptWarning)
            warnings.simplefilter("always", RuntimeWarning)
            warnings.showwarning = show_warning  # type: ignore[assignment]
            if arguments and arguments[0] in HANDED_OVER:
                return HANDED_OVER[arguments[0]](arguments[1:])
            args = parser().parse_args(arguments)
            args.run(args)
            if sys.stdout is not None:  # there is none under pythonw and some daemons
                sys.stdout.flush()
    except EdgediffError as error:
        print(f"edgediff: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `edgediff info | head`: the reader has seen enough
        _drop_stdout()
        return 141
    except OSError as error:  # a full disk behind stdout; pictures have errors of their own
        _drop_stdout()
        print(f"edgediff: {error}", file=sys.stderr)
        return 2
    return 0
