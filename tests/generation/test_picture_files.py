"""A picture file of a stranger is read where it is one, and within bounds."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgediff import ArgumentError
from edgediff.generation import picture_files
from edgediff.generation.pictures import image_pixels, mask_pixels


def claimed(width: int, height: int) -> bytes:
    """A PNG of grey that says it has this size, and holds less than a row of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(8193, 8192), (13000, 13000), (2**31 - 1, 1), (65535, 65535)])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(claimed(width, height))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow warns of its own
        with pytest.raises(ArgumentError, match=f"image is {width}x{height} pixels; it must hold at most 67108864"):
            image_pixels(path, 64, 64)
    with pytest.raises(ArgumentError, match="mask_image is"):
        mask_pixels(path, 64, 64)


def test_a_large_webp_is_refused_earlier(tmp_path: Path) -> None:
    Image.new("1", (5793, 5793)).convert("RGB").save(tmp_path / "a.webp", quality=0, method=0)
    with pytest.raises(ArgumentError, match="image is 5793x5793 pixels; it must hold at most 33554432"):
        image_pixels(tmp_path / "a.webp", 64, 64)


def test_a_large_image_of_pillow_is_refused_alike() -> None:
    with pytest.raises(ArgumentError, match="mask_image is 8193x8192 pixels; it must hold at most"):
        mask_pixels(Image.new("1", (8193, 8192)), 64, 64)


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in folders")
@pytest.mark.parametrize("name", ["pipe", "/dev/zero", "/dev/stdin", "."])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArgumentError, match="image cannot be read as a picture: "):
        image_pixels(tmp_path / name if name == "pipe" else name, 64, 64)


@pytest.mark.parametrize("format", ["EPS", "GIF", "TIFF", "BMP", "PDF", "ICO", "PPM"])
def test_other_formats_are_refused_by_name(tmp_path: Path, format: str) -> None:
    path = tmp_path / "a.png"  # a name says nothing
    Image.new("RGB", (4, 4)).save(path, format)
    with pytest.raises(ArgumentError, match="choose from PNG, JPEG, WebP, or open it with Pillow"):
        image_pixels(path, 4, 4)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_cut_file_is_named_at_every_length(tmp_path: Path, format: str) -> None:
    path = tmp_path / "a"
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    Image.fromarray(noise).save(path, format)
    data = path.read_bytes()
    image_pixels(path, 24, 24)
    for length in (*range(0, 60), *range(60, len(data) - 60, 97)):
        path.write_bytes(data[:length])
        with pytest.raises(ArgumentError, match=r"^image "):
            image_pixels(path, 24, 24)


def test_a_file_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path)
    monkeypatch.setattr(picture_files, "MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(ArgumentError, match=r"image cannot be read as a picture: .*it holds more than"):
        image_pixels(path, 4, 4)


def test_a_jpeg_of_endless_scans(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(path, "JPEG", progressive=True)
    data = path.read_bytes()
    start = data.rindex(b"\xff\xda")
    path.write_bytes(data[:start] + data[start:-2] * 1000 + data[-2:])
    with pytest.raises(ArgumentError, match=r"image is a JPEG of 10\d\d scans; it must have at most 200"):
        image_pixels(path, 8, 8)


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited by resource")
def test_no_memory_is_a_typed_error(tmp_path: Path) -> None:
    code = (
        "import resource, sys\n"
        "from edgediff import MemoryLimitError\n"
        "from edgediff.generation.pictures import image_pixels\n"
        "import PIL.Image, PIL.PngImagePlugin\n"
        "taken = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (taken + 100_000_000,) * 2)\n"
        "try:\n    image_pixels(sys.argv[1], 64, 64)\n"
        "except MemoryLimitError as error:\n    print(error)\n"
    )
    path = tmp_path / "a.png"
    Image.new("RGB", (8000, 8000)).save(path)
    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60)
    assert run.stdout == "image takes more memory than there is: scale it down\n", run.stderr
