"""Pictures: arrays to Pillow images, files with the parameters inside, written whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import ArgumentError, MemoryLimitError, OutputError, choices

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}
USER_COMMENT = 0x9286  # EXIF; the field that the Stable Diffusion tools read from JPEG and WebP
EXIF_IFD = 0x8769
EXIF_LIMIT = 60_000  # bytes, even; a JPEG segment ends at 65,535


def to_uint8(decoded: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Decoder output (B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3), rounded to nearest."""
    scaled = decoded * 127.5
    scaled += 127.5
    np.rint(scaled, out=scaled)
    np.clip(scaled, 0, 255, out=scaled)
    return np.ascontiguousarray(scaled.transpose(0, 2, 3, 1).astype(np.uint8))


def to_pil(pixels: NDArray[np.uint8], parameters: str = "") -> Image:
    """uint8 (H, W, 3) -> a Pillow image; ``parameters`` goes where ``save`` and Pillow's readers look."""
    from PIL import Image

    image = Image.fromarray(pixels)
    if parameters:
        image.info["parameters"] = parameters
    return image


def check_output(path: str | Path) -> Path:
    """Raise ``OutputError`` unless a picture can be written to ``path``; nothing is written."""
    if not isinstance(path, (str, Path)):
        raise ArgumentError(f"path is {path!r}; it must be a file's path")
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise OutputError(f"cannot write {path}: no format {path.suffix!r}; choose from {choices(FORMATS)}")
    try:
        folder, parent = path.is_dir(), path.parent.is_dir()
    except OSError as error:  # no permission to look, or a name that is too long
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    if folder:
        raise OutputError(f"cannot write {path}: it is a folder")
    if not parent:
        raise OutputError(f"cannot write {path}: the folder {path.parent} does not exist")
    try:
        # Permission bits do not tell all (read-only mounts, access lists): try what `save` will do.
        probe, descriptor = _hidden(path)
        os.close(descriptor)
        probe.unlink()
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _hidden(path: Path) -> tuple[Path, int]:
    """A new hidden file beside ``path``, with the permissions of a plain ``open``; and its descriptor."""
    hidden = path.with_name(f".edgediff-{secrets.token_hex(6)}{path.suffix}")
    return hidden, os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)


def save(image: Image, path: str | Path) -> Path:
    """Write ``image`` (PNG, WebP or JPEG by suffix) with ``image.info["parameters"]`` inside, atomically.

    Raises:
        ArgumentError: ``image`` or ``path`` is something else.
        OutputError: the path cannot be written; nothing is left behind.
        MemoryLimitError: memory ended on the way; nothing is left behind.
    """
    if not hasattr(image, "save"):
        raise ArgumentError(f"image is {type(image).__name__}; save takes one Pillow image")
    path = check_output(path)
    kind, parameters = FORMATS[path.suffix.lower()], image.info.get("parameters", "")
    options: dict[str, Any] = {}
    if kind == "PNG":
        from PIL.PngImagePlugin import PngInfo

        chunks = PngInfo()
        if parameters:
            chunks.add_text("parameters", parameters)  # an iTXt chunk where Latin-1 does not do
        options["pnginfo"] = chunks
    else:
        from PIL.Image import Exif

        exif = Exif()
        comment = b"UNICODE\0" + parameters.encode("utf-16-be")
        exif[EXIF_IFD] = {USER_COMMENT: comment[:EXIF_LIMIT]}  # Pillow 10 and 11.0 forget what get_ifd() is told
        options |= {"exif": exif, "quality": 95}
    try:
        hidden, descriptor = _hidden(path)
        try:
            with os.fdopen(descriptor, "wb") as f:
                image.save(f, kind, **options)
            os.replace(hidden, path)
        finally:
            hidden.unlink(missing_ok=True)
    except MemoryError as error:
        raise MemoryLimitError(f"memory ran out while writing {path}; smaller pictures take less") from error
    except (OSError, ValueError) as error:  # Pillow: ValueError for what a format cannot hold
        raise OutputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    return path
