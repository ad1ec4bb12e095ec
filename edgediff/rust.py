"""Libraries in Rust (tokenizers, safetensors) may panic on a stranger's file; a panic is no ``Exception`` in Python."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

PANIC = "PanicException"  # pyo3's; it cannot be imported


class LibraryPanic(Exception):
    """A library gave up in the middle of its work. Rust has written a line on stderr by then."""


@contextmanager
def panics_caught() -> Iterator[None]:
    """Make a panic a ``LibraryPanic``; whatever else is raised (``KeyboardInterrupt`` too) stays as it is."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if type(error).__name__ != PANIC:
            raise
        raise LibraryPanic(f"the library panicked: {error}") from error
