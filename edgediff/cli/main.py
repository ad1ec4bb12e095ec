"""The command ``edgediff``. Exit codes: 0 done, 2 bad input (said on stderr), 130 interrupted, 141 pipe closed."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from ..errors import ArgumentError, EdgediffError, EngineWarning, PromptWarning, printable
from ..version import __version__
from . import adopt, build, export, generate, info, plan, samplers, verify

COMMANDS = (generate, samplers, plan, info, build, verify, export, adopt)
MAX_MESSAGE = 1000  # characters of argparse's messages, which repeat a value whole
HANDED_OVER = {"export": export.hand_over, "adopt": adopt.hand_over}  # whose options are the export stage's


class Parser(argparse.ArgumentParser):
    """This parser raises one line an error, as everything else does."""

    def error(self, message: str) -> NoReturn:
        message = message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}..."
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


@contextmanager
def _spelled() -> Iterator[None]:
    """Print what stdout cannot spell with escapes, as stderr does, rather than fail in the middle."""
    out = sys.stdout
    errors = getattr(out, "errors", None)
    if errors != "strict" or not hasattr(out, "reconfigure"):
        yield
        return
    out.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        out.reconfigure(errors=errors)


def _say(text: object) -> None:
    """One line on stderr, with nothing in it that a terminal would obey."""
    print(f"edgediff: {printable(str(text))}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def show_warning(message: Warning | str, *_: object) -> None:
        _say(f"warning: {message}")

    try:
        with warnings.catch_warnings(), _spelled():
            warnings.simplefilter("always", PromptWarning)
            warnings.simplefilter("always", EngineWarning)
            warnings.simplefilter("always", RuntimeWarning)
            warnings.showwarning = show_warning  # type: ignore[assignment]
            if arguments and arguments[0] in HANDED_OVER:
                return HANDED_OVER[arguments[0]](arguments[1:])
            args = parser().parse_args(arguments)
            args.run(args)
            if sys.stdout is not None:  # there is none under pythonw and some daemons
                sys.stdout.flush()
    except EdgediffError as error:
        _say(error)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `edgediff info | head`: the reader has seen enough
        _drop_stdout()
        return 141
    except OSError as error:  # a full disk behind stdout; pictures have errors of their own
        _drop_stdout()
        _say(error)
        return 2
    except UnicodeError as error:  # a stdout of another kind, in the hands of a program that calls this
        _say(f"stdout cannot spell what there is to say: {error}")
        return 2
    return 0
