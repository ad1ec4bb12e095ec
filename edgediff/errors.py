"""The typed errors. Every message names the fact, the value and the choices."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable


class EdgediffError(Exception):
    """This is the base of every error that edgediff raises on purpose."""


class ArgumentError(EdgediffError, ValueError):
    """An argument lies outside what the model or the sampler takes."""


class PromptError(EdgediffError, ValueError):
    """A prompt cannot be used."""


class PromptWarning(UserWarning):
    """A prompt was used, or written into a picture, in part; the message says what was cut."""


class BundleError(EdgediffError, ValueError):
    """A bundle is missing, malformed or damaged."""


class BundleNotFoundError(BundleError, FileNotFoundError):
    """A bundle, or a file that its manifest names, does not exist."""


class EngineError(EdgediffError, RuntimeError):
    """An engine is not installed, cannot open a part, failed in it, or gave values that are not finite."""


class EngineWarning(UserWarning):
    """An engine runs otherwise than it could; the message says which part, and why. Its results are right."""


class MemoryLimitError(EdgediffError, MemoryError):
    """A call, or a bundle, would take more memory than there is or than it was allowed."""


class DeadlineError(EdgediffError, TimeoutError):
    """A call was not done when its time was over."""


class OutputError(EdgediffError, OSError):
    """A picture cannot be written where it was asked for."""


class CopyError(EdgediffError, TypeError):
    """A pipeline holds engines, and cannot be copied or pickled."""


class MissingAttributeError(EdgediffError, AttributeError):
    """A pipeline has no such attribute, or it cannot be set."""


SHOWN = 200  # characters of a value that a message repeats


def shown(value: object, limit: int = SHOWN) -> str:
    """A value as a message can repeat it: its repr, on one line, cut after ``limit`` characters, with nothing in it
    that a terminal would obey. It does not fail.

    A repr may raise, a number may have more digits than Python prints, and a text may be a megabyte long.
    """
    if isinstance(value, (str, bytes)) and len(value) > limit:
        return f"{printable(repr(value[:limit]))}... ({len(value)} in all)"
    try:
        text = repr(value)
    except Exception as error:  # a stranger's object, or an int of over 4,300 digits
        text = f"<{type(value).__name__} that cannot be shown ({type(error).__name__})>"
    return printable(text if len(text) <= limit else f"{text[:limit]}...")


def printable(text: str) -> str:
    """A text on one line, with escapes in place of what does not print: control characters, lone surrogates, and marks
    that turn the direction of writing.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def choices(names: Iterable[str]) -> str:
    """``a, b, c`` for the end of a message."""
    return ", ".join(names)


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn about a line of the program that called into this package, however deep that call went."""
    own, depth = __name__.partition(".")[0], 1
    frame = sys._getframe(depth)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == own:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, category, stacklevel=depth + 1)
