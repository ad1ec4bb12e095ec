"""Pieces of command lines."""

from __future__ import annotations

import argparse

from ..errors import ArgumentError


def size(text: str, name: str = "size") -> tuple[int, int]:
    """``64x64`` -> (width, height)."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and len(width) <= 9 and len(height) <= 9):
        raise ArgumentError(f"{name} is {text[:40]!r}; write it as WIDTHxHEIGHT, for example 64x64")
    return int(width), int(height)


def numbers(name: str, text: str | None) -> list[float] | None:
    """``7,5.5,3`` -> its numbers."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ArgumentError(f"{name} is {text[:40]!r}; it must be a number, or several with commas between") from error


def add_engine_cache(p: argparse.ArgumentParser) -> None:
    """Add the option that says where TensorRT engine files are."""
    p.add_argument(
        "--engine-cache", metavar="DIR", help="folder of TensorRT engine files (default: $EDGEDIFF_CACHE, or a cache)"
    )
