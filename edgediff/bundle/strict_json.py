"""A stranger's JSON: numbers that are numbers, text that is text, and no deeper than anybody writes it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ..confined import confined
from ..errors import BundleError, BundleNotFoundError, shown
from ..files import read_regular
from ..looks import stand_in
from .bounds import MAX_CONFIG, MAX_DEPTH, MAX_TEXT

MAX_DIGITS = 19  # of a whole number
LARGE_DIGITS = 40  # of one in a config, where transformers writes int(1e30) for "no limit"; it becomes a float


def read_object(root: Path, path: Path, limit: int = MAX_CONFIG) -> dict[str, Any]:
    """Read a JSON object of at most ``limit`` bytes from a file that lies in the folder ``root``.

    Raises:
        BundleNotFoundError: no such file.
        BundleError: it lies elsewhere, is too long, cannot be read, or holds something else.
    """
    return parse_object(path, read_inside(root, path, limit), infinite=True)


def read_inside(root: Path, path: Path, limit: int) -> bytes:
    """Read a file of at most ``limit`` bytes that lies in the folder ``root``. Raises as ``read_object``."""
    try:
        if not confined(root, path).is_file():
            raise BundleNotFoundError(f"{path} is missing")
        return read_regular(path, limit)
    except BundleError:
        raise
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error


def parse_object(path: Path, raw: bytes, *, infinite: bool = False) -> dict[str, Any]:
    """The JSON object that the file at ``path`` holds; ``infinite``: diffusers writes -Infinity into its configs, and
    transformers a whole number that no int64 is.

    Raises:
        BundleError: it holds something else; the message says what.
    """
    constant: Callable[[str], Any] = float if infinite else _constant
    whole: Callable[[str], Any] = _large if infinite else _whole
    try:
        data = json.loads(raw, parse_constant=constant, parse_float=_float, parse_int=whole)
        _check(data)
    except (ValueError, RecursionError) as error:
        if wrong := stand_in(path):
            raise BundleError(f"{path} is {wrong}") from error
        if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
            raise BundleError(f"{path} is not JSON: {error}") from error
        deep = isinstance(error, RecursionError)
        raise BundleError(f"{path}: {f'its objects lie more than {MAX_DEPTH} deep' if deep else error}") from error
    if not isinstance(data, dict):
        raise BundleError(f"{path} holds {type(data).__name__}, not an object")
    return data


def _constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds {shown(text, 40)}, a number that no float64 is")
    return value


def _whole(text: str) -> int:
    if len(text) > MAX_DIGITS + text.startswith("-"):
        raise ValueError(f"it holds a whole number of {len(text)} digits; they have at most {MAX_DIGITS}")
    return int(text)


def _large(text: str) -> int | float:
    return float(text) if MAX_DIGITS < len(text.lstrip("-")) <= LARGE_DIGITS else _whole(text)


def _check(data: Any) -> None:
    """Every text in a tree, keys too: no longer than ``MAX_TEXT``, writable as UTF-8, and without NUL."""
    rest = [(data, 1)]
    while rest:
        value, depth = rest.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"its objects lie more than {MAX_DEPTH} deep")
        for key in value if isinstance(value, dict) else ():
            _check_text(key)
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else (value,)
        for one in inner:
            if isinstance(one, str):
                _check_text(one)
            elif isinstance(one, (dict, list)) and one:  # an empty one holds nothing to check
                rest.append((one, depth + 1))


def _check_text(text: str) -> None:
    if len(text) > MAX_TEXT:
        raise ValueError(f"it holds a text of {len(text)} characters; they have at most {MAX_TEXT}")
    if "\0" in text:
        raise ValueError(f"it holds a text with NUL in it: {shown(text, 40)}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"it holds half a character (a lone surrogate): {shown(text, 40)}") from error
