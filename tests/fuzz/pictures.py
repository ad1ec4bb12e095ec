"""Pictures and masks for an inpainting model: every mode and format, damaged files, arrays of every type."""

from __future__ import annotations

import io
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

import edgediff

from .children import Report, judged
from .inpainting import make_inpainting
from .kinds import dice
from .raw import battered

MODES = (
    "1",
    "L",
    "LA",
    "P",
    "PA",
    "RGB",
    "RGBA",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "I;16",
    "I;16B",
    "F",
    "La",
)
FORMATS = ("png", "jpeg", "webp", "bmp", "gif", "tiff", "ppm", "tga", "ico", "jpeg2000", "sgi", "pcx")
SIZES = (0, 1, 2, 3, 31, 32, 33, 64, 500)
TYPES = ("uint8", "bool", "int8", "uint16", "int32", "int64", "float16", "float32", "float64", "complex64", "U1", "O")


def drawn(random: Random) -> Image.Image:
    mode, size = random.choice(MODES), (random.choice(SIZES), random.choice(SIZES))
    bands = {"LA": 2, "La": 2, "PA": 2, "RGB": 3, "YCbCr": 3, "LAB": 3, "HSV": 3}.get(mode, 4)
    width = {"I": 4, "F": 4, "I;16": 2, "I;16B": 2, "L": 1, "P": 1, "1": 1}.get(mode, bands)
    content = random.randbytes(size[0] * size[1] * width)
    try:
        return Image.frombytes(mode, size, content)
    except ValueError:
        return Image.new(mode, size)


def stored(random: Random, folder: Path) -> Path:
    """A picture's file, damaged or not."""
    path = folder / f"picture.{random.choice(('png', 'jpg', 'dat'))}"
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = random.choice((1, 3, 6, 8, 0, 99))
    for _ in range(20):
        try:
            drawn(random).save(out, random.choice(FORMATS), exif=exif)
            break
        except Exception:
            out = io.BytesIO()
    data = out.getvalue() or b"\x89PNG\r\n\x1a\n"
    if random.random() < 0.6:
        data = battered(data, random)[0]
    path.write_bytes(data)
    return path


def given(random: Random, folder: Path) -> Any:
    """Something that somebody may hand over as a picture."""
    how = random.random()
    if how < 0.5:
        return stored(random, folder)
    if how < 0.7:
        return drawn(random)
    if how < 0.8:
        try:
            return Image.open(stored(random, folder))
        except Exception:
            return folder / "missing.png"
    shape = random.choice(
        ((32, 32, 3), (32, 32), (32, 32, 1), (32, 32, 4), (1, 32, 32), (0, 0), (0, 5, 3), (), (7,), (2, 2, 2, 3))
    )
    kind = random.choice(TYPES)
    array = np.frombuffer(random.randbytes(int(np.prod(shape))), np.uint8).reshape(shape)
    return (array / 255 if "float" in kind and random.random() < 0.5 else array).astype(kind)


class Pictures:
    name = "pictures"
    at_once = 5

    def prepare(self, work: Path) -> None:
        make_inpainting(work / "inpainting")

    def roots(self, work: Path) -> list[Path]:
        return [work / "inpainting"]

    def run(self, numbers: range, seed: int, folder: Path, report: Report) -> None:
        pipe = edgediff.load(folder.parent / "inpainting", threads=1)
        for number in numbers:
            random = dice(self.name, seed, number)
            values = {"image": given(random, folder), "mask_image": given(random, folder)}
            sound: dict[str, Any] = {"image": Image.new("RGB", (32, 32)), "mask_image": Image.new("L", (32, 32), 255)}
            for name in random.choice(((), ("image",), ("mask_image",))):
                values[name] = sound[name]
            report(judged(repr(values)[:300], lambda v=values, r=random: self._draw(pipe, v, r, folder)))

    def _draw(self, pipe: edgediff.Pipeline, values: dict[str, Any], random: Random, folder: Path) -> None:
        if random.random() < 0.2:
            edgediff.save(drawn(random), folder / f"saved.{random.choice(('png', 'jpg', 'webp'))}")
        result = pipe("a red apple", num_inference_steps=1, seed=1, output_type="np", **values)
        assert result.array.shape == (1, 32, 32, 3)


KIND = Pictures()
