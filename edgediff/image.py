"""Pictures: arrays to Pillow images, files with the parameters inside, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import (
    ArgumentError,
    MemoryLimitError,
    OutputError,
    PromptWarning,
    choices,
    printable,
    shown,
    warn_caller,
)
from .whole import clear_now_and_then, make_hidden, replacing

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = {".png": "PNG", ".webp": "WEBP", ".jpg": "JPEG", ".jpeg": "JPEG"}
USER_COMMENT = 0x9286  # EXIF; the field that the Stable Diffusion tools read from JPEG and WebP
EXIF_IFD = 0x8769
EXIF_LIMIT = 60_000  # bytes of text in a JPEG, even; a segment ends at 65,535
PATH_SHOWN = 1000  # characters


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
    path = _checked(path)
    try:
        # Permission bits do not tell all (read-only mounts, access lists): try what `save` will do.
        probe, descriptor = make_hidden(path)
        os.close(descriptor)
        probe.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise _cannot(path, error) from error
    return path


def _checked(path: str | Path) -> Path:
    if not isinstance(path, (str, Path)):
        raise ArgumentError(f"path is {shown(path)}; it must be a file's path")
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise _cannot(path, f"no format {shown(path.suffix, 40)}; choose from {choices(FORMATS)}")
    try:
        folder, parent = path.is_dir(), path.parent.is_dir()
    except (OSError, ValueError) as error:  # no permission to look, a name that is too long or holds a zero
        raise _cannot(path, error) from error
    if folder:
        raise _cannot(path, "it is a folder")
    if not parent:
        raise _cannot(path, f"the folder {_short(path.parent)} does not exist")
    return path


def save(image: Image, path: str | Path) -> Path:
    """Write ``image`` (PNG, WebP or JPEG by suffix) with ``image.info["parameters"]`` inside, whole or not at all.

    What was there keeps its permissions; a link is replaced, not followed. Hidden files that a killed process left in
    the folder are removed.

    Warns:
        PromptWarning: a JPEG holds 30,000 characters; of longer parameters the end of the prompts is left out.

    Raises:
        ArgumentError: ``image`` or ``path`` is something else, it has no pixels, or the parameters are no text.
        OutputError: the path cannot be written; nothing is left behind.
        MemoryLimitError: there is no memory to write it.
    """
    from PIL import Image as pillow

    if not isinstance(image, pillow.Image):
        raise ArgumentError(f"image is {type(image).__name__}; save takes one Pillow image")
    if not all(image.size):
        raise ArgumentError(f"image is {image.width}x{image.height} pixels; there is nothing to write")
    path = _checked(path)
    kind = FORMATS[path.suffix.lower()]
    parameters = _parameters(image)
    kept = _shortened(parameters) if kind == "JPEG" else parameters
    options = _options(kind, kept)
    clear_now_and_then(path.parent)
    try:
        with replacing(path) as f:
            image.save(f, kind, **options)
    except MemoryError as error:
        raise MemoryLimitError(f"cannot write {_short(path)}: there is no memory for it") from error
    except Exception as error:  # Pillow raises many kinds for what a format cannot hold
        raise _cannot(path, error) from error
    if kept != parameters:
        warn_caller(
            f"a JPEG holds {EXIF_LIMIT // 2} characters of parameters, and these are {len(parameters)}: the end of the "
            "prompts is left out of the file; PNG and WebP hold all",
            PromptWarning,
        )
    return path


def _parameters(image: Image) -> str:
    text = image.info.get("parameters", "") if isinstance(image.info, dict) else ""
    if not isinstance(text, str):
        raise ArgumentError(f"image.info['parameters'] is {shown(text)}; it must be text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(f"image.info['parameters'] is no Unicode text: {shown(text)}") from error
    return text


def _options(kind: str, parameters: str) -> dict[str, Any]:
    """Pillow's options for a format, with the parameters where the field's tools read them."""
    if kind == "PNG":
        from PIL.PngImagePlugin import PngInfo

        chunks = PngInfo()
        if parameters:
            chunks.add_text("parameters", parameters)  # an iTXt chunk where Latin-1 does not do
        return {"pnginfo": chunks}
    from PIL.Image import Exif

    exif = Exif()
    comment = b"UNICODE\0" + parameters.encode("utf-16-be")
    exif[EXIF_IFD] = {USER_COMMENT: comment}  # Pillow 10 and 11.0 forget what get_ifd() is told
    return {"exif": exif, "quality": 95}


def _shortened(parameters: str) -> str:
    """What a JPEG holds of them: all, or the beginning and the last line, which has seed and settings."""
    whole = parameters.encode("utf-16-be")
    if len(whole) <= EXIF_LIMIT:
        return parameters
    last = ("\n" + parameters.rpartition("\n")[2]).encode("utf-16-be")
    last = last if len(last) < EXIF_LIMIT // 2 else b""
    return (whole[: EXIF_LIMIT - len(last)] + last).decode("utf-16-be", "ignore")  # which drops half of a pair


def _cannot(path: Path, why: Exception | str) -> OutputError:
    reason = why if isinstance(why, str) else str(getattr(why, "strerror", None) or why or type(why).__name__)
    return OutputError(f"cannot write {_short(path)}: {printable(reason)[:400]}")


def _short(path: Path) -> str:
    text = printable(str(path)[:PATH_SHOWN])
    return text if len(str(path)) <= PATH_SHOWN else f"{text}..."
