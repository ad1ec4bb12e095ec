"""Configs of a folder are read within bounds, and named where they are something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import BundleError, BundleNotFoundError
from ...looks import stand_in

MAX_CONFIG = 64 << 20  # bytes; tokenizer.json of the largest vocabularies has 34 MB


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        BundleNotFoundError: no such file.
        BundleError: it cannot be read, or holds something else.
    """
    try:
        if not path.is_file():
            raise BundleNotFoundError(f"{path} is missing")
        if (size := path.stat().st_size) > MAX_CONFIG:
            raise BundleError(f"{path} has {size} bytes; a config has at most {MAX_CONFIG}")
        raw = path.read_bytes()
    except OSError as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        wrong = stand_in(path)
        raise BundleError(f"{path} is not JSON: {f'it is {wrong}' if wrong else error}") from error
    if not isinstance(data, dict):
        raise BundleError(f"{path} holds {type(data).__name__}, not an object")
    return data
