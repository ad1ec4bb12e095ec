"""Pictures: arrays to Pillow images, files with the parameters inside, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import OutputError, choices

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}
USER_COMMENT = 0x9286  # EXIF; the field that the Stable Diffusion tools read from JPEG and WebP
EXIF_IFD = 0x8769


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
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise OutputError(f"cannot write {path}: no format {path.suffix!r}; choose from {choices(FORMATS)}")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder")
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: the folder {path.parent} does not exist")
    try:
        # Permission bits do not tell all (read-only mounts, access lists): try what `save` will do.
        descriptor, probe = tempfile.mkstemp(dir=path.parent, prefix=".edgediff-")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    os.close(descriptor)
    os.unlink(probe)
    return path


def save(image: Image, path: str | Path) -> Path:
    """Write ``image`` (PNG, WebP or JPEG by suffix) with ``image.info["parameters"]`` inside, atomically.

    Raises:
        OutputError: the path cannot be written; nothing is left behind.
    """
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
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + parameters.encode("utf-16-be")
        options |= {"exif": exif, "quality": 95}
    # Pillow has to see the real suffix only for `format`; the hidden name keeps half a file from being found.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".edgediff-", suffix=path.suffix)
    try:
        with os.fdopen(descriptor, "wb") as f:
            image.save(f, kind, **options)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    return path
