"""Files that are something else than their name says: a pointer of Git LFS, a page of the web, nothing at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...errors import BundleError, BundleNotFoundError

LFS = b"version https://git-lfs"
MAX_CONFIG = 64 << 20  # bytes; tokenizer.json of the largest vocabularies has 34 MB


def why_no_model(path: Path) -> str:
    """Tell what a file is that is no model, where its first bytes tell; an empty string elsewhere."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "it is empty"
    if head.startswith(LFS):
        return "it is a pointer of Git LFS; fetch the file itself: git lfs pull"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page; download the file itself"
    if head[:4] == b"PK\x03\x04":
        return "it is a zip file"
    return ""


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
        raise BundleError(f"{path} is not JSON: {why_no_model(path) or error}") from error
    if not isinstance(data, dict):
        raise BundleError(f"{path} holds {type(data).__name__}, not an object")
    return data
