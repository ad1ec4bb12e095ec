"""Strangers' picture files: three formats, bounded before they are decoded."""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, choices
from ..files import read_regular

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_BYTES = 128 << 20  # of a file
MAX_PIXELS = 1 << 26  # 8192 x 8192; what is done with one takes less than 1 GB
MAX_SCANS = 200  # of a JPEG, each of which may walk over all of its pixels; common ones have 1 or 10
# What a file begins with, Pillow's class for it, and the most pixels. Image.open would try forty readers, some of which
# start programs, and warns on the screen where a picture is large. WebP's reader holds four pictures at once.
READERS = {
    "PNG": (b"\x89PNG\r\n\x1a\n", "PngImagePlugin", "PngImageFile", MAX_PIXELS),
    "JPEG": (b"\xff\xd8\xff", "JpegImagePlugin", "JpegImageFile", MAX_PIXELS),
    "WebP": (b"RIFF", "WebPImagePlugin", "WebPImageFile", MAX_PIXELS // 2),
}


def open_file(name: str, path: str | Path) -> Image:
    """The picture in a file, its first where there are several; its size is known and nothing of it is decoded.

    Raises:
        ArgumentError: a file of another format, or one that is too large; errors call it ``name``.
        OSError, SyntaxError and others: as Pillow raises them.
    """
    data = read_regular(path, MAX_BYTES)
    kind = next((kind for kind, (start, *_) in READERS.items() if data.startswith(start)), None)
    if kind is None:
        raise ArgumentError(
            f"{name} is no picture that is read here; choose from {choices(READERS)}, or open it with Pillow and give "
            "its image"
        )
    if kind == "JPEG" and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise ArgumentError(f"{name} is a JPEG of {scans} scans; it must have at most {MAX_SCANS}: save it anew")
    _, module, reader, most = READERS[kind]
    made: Any = getattr(importlib.import_module(f"PIL.{module}"), reader)(io.BytesIO(data))
    check_pixels(name, made, most)
    return made  # type: ignore[no-any-return]


def check_pixels(name: str, picture: Image, most: int = MAX_PIXELS) -> None:
    """Refuse a picture without pixels, or with more than ``most``, by ``ArgumentError``, which calls it ``name``."""
    width, height = picture.size
    if not width or not height:
        raise ArgumentError(f"{name} is {width}x{height} pixels; there is nothing in it")
    if width * height > most:
        raise ArgumentError(f"{name} is {width}x{height} pixels; it must hold at most {most}: scale it down")
