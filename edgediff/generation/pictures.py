"""A caller's picture -> 8-bit pixels of the call's size, whatever it came as; what is ambiguous is refused by name."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, EngineError, MemoryLimitError, printable, shown
from .picture_files import check_pixels, open_file

if TYPE_CHECKING:
    from PIL.Image import Image

WHITE = (255, 255, 255)
ORIENTATION = 0x0112  # EXIF
# How to turn a picture whose EXIF orientation is this, as PIL.Image.Transpose names it.
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
TAKEN = "a Pillow image, a uint8 or bool array, or the path of a PNG, JPEG or WebP file"


def image_pixels(image: Any, width: int, height: int) -> NDArray[np.uint8]:
    """The picture of a call, uint8 (height, width, 3). Transparent parts lie on white, as in A1111.

    Args:
        image: a Pillow image; an array, uint8 or bool, (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); or a file's path. Of
            a file with several pictures the first is taken. EXIF's orientation is applied.
        width, height: it is scaled to.

    Raises:
        ArgumentError: anything else, a damaged file, no pixels, or more than 2**26 (a WebP file: 2**25).
        MemoryLimitError: there is no memory for it.
    """
    return _pixels("image", image, width, height)


def mask_pixels(mask_image: Any, width: int, height: int) -> NDArray[np.uint8]:
    """The mask of a call, uint8 (height, width); white is drawn anew. Arguments and errors as ``image_pixels``.

    Raises:
        ArgumentError: also where parts are transparent, which programs read in opposite ways, and where nothing lies
            above 1, which means 0 and 255 nearly always.
    """
    return _pixels("mask_image", mask_image, width, height)


def _pixels(name: str, source: Any, width: int, height: int) -> NDArray[np.uint8]:
    try:
        from PIL import Image
    except ImportError as error:
        raise EngineError("the package pillow is not installed; run: pip install pillow") from error
    try:
        picture = _opened(name, source)
        check_pixels(name, picture)
        turn = _turn(picture)
        eight = _mask(name, picture) if name == "mask_image" else _image(name, picture)
        del picture
        if turn is not None:
            eight = eight.transpose(Image.Transpose[turn])
        if eight.size != (width, height):
            eight = eight.resize((width, height), Image.Resampling.LANCZOS)
        return np.asarray(eight)
    except ArgumentError:
        raise
    except MemoryError as error:
        raise MemoryLimitError(f"{name} takes more memory than there is: scale it down") from error
    except Exception as error:  # Pillow raises many kinds
        raise ArgumentError(f"{name} cannot be read as a picture: {printable(str(error))[:400]}") from error


def _turn(picture: Image) -> str | None:
    """How phones say by a note that a picture is to be turned; a note that cannot be read says nothing."""
    try:
        return TURNS.get(picture.getexif().get(ORIENTATION, 1))
    except (OSError, SyntaxError, ValueError, TypeError, struct.error):  # what Pillow raises for damaged EXIF
        return None


def _opened(name: str, source: Any) -> Image:
    from PIL import Image

    if isinstance(source, (str, Path)):
        return open_file(name, source)
    if isinstance(source, Image.Image):
        return source
    if not isinstance(source, np.ndarray):
        raise ArgumentError(f"{name} is {type(source).__name__}; it must be {TAKEN}")
    if source.dtype not in (np.uint8, np.bool_) or source.ndim not in (2, 3) or source.shape[2:] not in FORMS:
        raise ArgumentError(
            f"{name} is an array of {shown(source.dtype.name)} {source.shape}; it must be uint8, 0 .. 255, or bool, "
            "and (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)"
        )
    array = np.asarray(source)
    array = array[:, :, 0] if array.shape[2:] == (1,) else array
    if not array.size:
        raise ArgumentError(f"{name} is an array {source.shape}; there is nothing in it")
    return Image.fromarray(array * np.uint8(255) if array.dtype == np.bool_ else np.ascontiguousarray(array))


FORMS = ((), (1,), (3,), (4,))  # what may follow (H, W)


def _image(name: str, picture: Image) -> Image:
    """RGB, with white where the picture is transparent."""
    from PIL import ImageChops

    if picture.mode.startswith("I") or picture.mode == "F":
        grey, seen = _from_deep(name, picture)
        grey[~seen] = 255
        return _grey(grey).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    whole = _with_alpha(picture)
    out, alpha = whole.convert("RGB"), whole.getchannel("A")
    del whole
    out.paste(WHITE, mask=ImageChops.invert(alpha))
    return out


def _mask(name: str, picture: Image) -> Image:
    """L; white is drawn anew."""
    if picture.mode.startswith("I") or picture.mode == "F":
        deep, seen = _from_deep(name, picture)
        hidden, grey = not seen.all(), _grey(deep)
    else:
        hidden = picture.has_transparency_data and _with_alpha(picture).getchannel("A").getextrema()[0] != 255
        grey = picture.convert("L") if picture.mode in ("1", "L") else picture.convert("RGB").convert("L")
    if hidden:
        raise ArgumentError(
            f"{name} is transparent in parts, which some programs draw anew and others keep; give a grey picture "
            "(white is drawn anew, black is kept), for example picture.getchannel('A') or its ImageOps.invert"
        )
    if grey.getextrema()[1] == 1:
        _refuse_ones(name)
    return grey


def _refuse_ones(name: str) -> None:
    raise ArgumentError(f"{name} holds nothing above 1; 0 and 255 are meant: give mask * 255, or a bool array")


def _with_alpha(picture: Image) -> Image:
    return (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")


def _grey(values: NDArray[np.uint8]) -> Image:
    from PIL import Image

    return Image.fromarray(values)


def _from_deep(name: str, picture: Image) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Pixels of 16 bits as 8, (H, W), rounded to nearest; and where they are to be seen."""
    if picture.mode == "F":
        raise ArgumentError(
            f"{name} is a Pillow image of mode F, whose white nobody says; make it 8-bit: for values from 0 to 1 "
            "Image.fromarray((255 * values).round().astype('uint8'))"
        )
    values = np.asarray(picture)
    low, high = int(values.min()), int(values.max())
    # Older Pillows open a 16-bit PNG as mode I, which may hold anything else as well.
    if low < 0 or high > 65535 or (picture.mode == "I" and picture.format != "PNG" and 0 < high < 256):
        raise ArgumentError(
            f"{name} is a Pillow image of mode {picture.mode} with values from {low} to {high}; 16-bit grey is meant, "
            "0 .. 65535: make it of mode L or I;16"
        )
    if high == 1 and name == "mask_image":
        _refuse_ones(name)
    key = picture.info.get("transparency")
    seen = np.ones(values.shape, np.bool_) if not isinstance(key, int) else values != key
    scaled = values.astype(np.uint32)
    scaled += 128
    scaled //= 257
    return scaled.astype(np.uint8), seen
