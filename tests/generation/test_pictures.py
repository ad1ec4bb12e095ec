"""Pictures and masks mean what they say, in every form that Pillow and NumPy give them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from edgediff import ArgumentError
from edgediff.generation.pictures import image_pixels, mask_pixels

SIDE = 16
RAMP = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)
DEEP = np.round(RAMP.astype(np.float64) * 257).astype(np.uint16)  # the same ramp in 16 bits
COLOURS = np.stack([RAMP, RAMP.T, RAMP[::-1]], axis=2)


def image(source: Any) -> Any:
    return image_pixels(source, SIDE, SIDE)


def mask(source: Any) -> Any:
    return mask_pixels(source, SIDE, SIDE)


def big_endian() -> Image.Image:
    return Image.frombytes("I;16B", (SIDE, SIDE), DEEP.astype(">u2").tobytes())


@pytest.mark.parametrize(
    "deep",
    [lambda: Image.fromarray(DEEP), big_endian, lambda: Image.fromarray(DEEP.astype(np.int32))],
    ids=["I;16", "I;16B", "I"],
)
def test_a_ramp_of_16_bits_is_the_ramp_of_8(deep: Any) -> None:
    assert deep().mode.startswith("I")
    assert (mask(deep()) == RAMP).all()
    assert (image(deep()) == RAMP[:, :, None]).all()


def test_a_png_of_16_bits_by_path(tmp_path: Path) -> None:
    Image.fromarray(DEEP).save(tmp_path / "grey.png")
    assert (mask(tmp_path / "grey.png") == RAMP).all()
    assert (image(str(tmp_path / "grey.png")) == RAMP[:, :, None]).all()


def png_of_16_bits(colours: Any) -> bytes:
    """A PNG of 16-bit RGB, which Pillow reads and does not write."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    head = struct.pack(">IIBBBBB", colours.shape[1], colours.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_png_of_16_bit_colours(tmp_path: Path) -> None:
    (tmp_path / "rgb.png").write_bytes(png_of_16_bits(COLOURS.astype(np.uint16) * 257))
    assert (image(tmp_path / "rgb.png") == COLOURS).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_is_turned_back_as_file_and_as_image(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    Image.fromarray(COLOURS).save(path, exif=exif)
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
        assert (image(opened) == expected).all()
        assert (mask(opened) == np.asarray(ImageOps.exif_transpose(opened).convert("L"))).all()
    assert (image(path) == expected).all()
    assert (expected == COLOURS).all() == (orientation == 1)


def transparent(mode: str) -> Image.Image:
    """Colours that are seen on the left half alone."""
    alpha = np.zeros((SIDE, SIDE), np.uint8)
    alpha[:, : SIDE // 2] = 255
    picture = Image.fromarray(COLOURS).convert("L" if mode == "LA" else "RGB")
    picture.putalpha(Image.fromarray(alpha))
    picture = picture if mode in ("RGBA", "LA") else picture.convert(mode)
    if picture.getchannel("A" if mode != "RGBa" else "a").getextrema() != (0, 255):
        pytest.skip("an older Pillow loses this mode's alpha when it makes it")
    return picture


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "RGBa"])
def test_a_transparent_picture_lies_on_white_and_a_transparent_mask_is_refused(mode: str, tmp_path: Path) -> None:
    picture = transparent(mode)
    white = Image.new("RGBA", picture.size, "white")
    expected = np.asarray(Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB"))
    assert (expected[:, SIDE // 2 :] == 255).all()
    assert (image(picture) == expected).all()
    with pytest.raises(ArgumentError, match="mask_image is transparent in parts, which some programs draw anew"):
        mask(picture)
    if mode == "RGBA":
        picture.save(tmp_path / "a.webp", lossless=True, exact=True)
        assert (image(tmp_path / "a.webp") == expected).all()
        assert (image(np.asarray(picture)) == expected).all()


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_a_transparent_colour_is_white_too(mode: str, tmp_path: Path) -> None:
    picture = Image.new(mode, (SIDE, SIDE), 0)
    picture.save(tmp_path / "a.png", transparency=(0, 0, 0) if mode == "RGB" else 0)
    assert (image(tmp_path / "a.png") == 255).all()
    with pytest.raises(ArgumentError, match="transparent in parts"):
        mask(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["png", "webp", "jpg"])
def test_notes_that_cannot_be_read_turn_nothing(kind: str, tmp_path: Path) -> None:
    """Viewers show such a picture."""
    path = tmp_path / f"a.{kind}"
    Image.new("RGB", (8, 4), "red").save(path, exif=b"Exif\0\0no notes at all")
    plain = image_pixels(Image.open(path).convert("RGB").copy(), 8, 4)
    for source in (path, Image.open(path)):
        assert np.array_equal(image_pixels(source, 8, 4), plain)
    assert plain[0, 0, 0] > 200


def test_an_opaque_alpha_says_nothing() -> None:
    whole = np.dstack([COLOURS, np.full((SIDE, SIDE), 255, np.uint8)])
    assert (image(whole) == COLOURS).all()
    assert (mask(whole) == np.asarray(Image.fromarray(COLOURS).convert("L"))).all()


@pytest.mark.parametrize("mode", ["CMYK", "HSV", "YCbCr", "LAB", "P", "1", "L"])
def test_other_colours_are_pillows_own(mode: str) -> None:
    picture = Image.fromarray(COLOURS).convert(mode)
    assert (image(picture) == np.asarray(picture.convert("RGB"))).all()


def test_masks_of_truth_values_and_of_one_channel() -> None:
    black = RAMP < 128
    for given in (~black, (~black)[:, :, None], (~black * 255).astype(np.uint8), Image.fromarray(~black)):
        assert ((mask(given) >= 128) == ~black).all()
    assert not mask(np.zeros((SIDE, SIDE), np.uint8)).any()
    assert (mask(np.full((4, 4, 3), 255, np.uint8)) == 255).all()


FLOATS = np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.float32)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (Image.fromarray(FLOATS), "is a Pillow image of mode F, whose white nobody says; make it 8-bit"),
        (FLOATS, r"is an array of 'float32' \(16, 16\); it must be uint8, 0 .. 255, or bool"),
        (DEEP, "is an array of 'uint16'"),
        (RAMP.astype(object), "is an array of 'object'"),
        (np.zeros((2, SIDE, SIDE, 3), np.uint8), r"is an array of 'uint8' \(2, 16, 16, 3\)"),
        (np.zeros((SIDE, SIDE, 2), np.uint8), r"\(H, W, 1\), \(H, W, 3\) or \(H, W, 4\)"),
        (np.zeros((0, 0), np.uint8), "there is nothing in it"),
        (np.zeros((0, 5, 3), np.bool_), "there is nothing in it"),
        (Image.new("RGB", (0, 0)), "is 0x0 pixels; there is nothing in it"),
        (Image.fromarray(DEEP.astype(np.int32) * 2), "with values from 0 to 131070; 16-bit grey is meant"),
        (Image.fromarray(RAMP.astype(np.int32)), "with values from 0 to 255; 16-bit grey is meant"),
        ([[0, 255]], "is list; it must be a Pillow image, a uint8 or bool array, or the path of a PNG"),
        (b"a.png", "is bytes"),
        (None, "is NoneType"),
        ("\0", "cannot be read as a picture: embedded null byte"),
        ("x" * 10**6, "cannot be read as a picture: .*name too long"),
    ],
)
def test_what_cannot_be_told_is_refused(source: Any, said: str) -> None:
    for read in (image, mask):
        with pytest.raises(ArgumentError, match=said) as caught:
            read(source)
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "ones", [RAMP % 2, Image.fromarray(RAMP % 2), Image.fromarray(DEEP % 2), Image.fromarray((DEEP % 2).astype("i4"))]
)
def test_a_mask_of_0_and_1_is_refused(ones: Any) -> None:
    with pytest.raises(ArgumentError, match=r"0 and 255 are meant: give mask \* 255|16-bit grey is meant"):
        mask(ones)


def test_pictures_are_scaled_as_diffusers_scales_them(diffusers: Any) -> None:
    """Its image processors; the mask as it is made binary, at 0.5."""
    from diffusers.image_processor import VaeImageProcessor

    ours, theirs = image_pixels(COLOURS, 24, 8), VaeImageProcessor(vae_scale_factor=8)
    expected = theirs.preprocess(Image.fromarray(COLOURS), height=8, width=24)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(ours / np.float32(127.5) - 1, expected, atol=1e-6)
    masks = VaeImageProcessor(vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    expected = masks.preprocess(Image.fromarray(RAMP), height=8, width=24)[0, 0].numpy()
    assert ((mask_pixels(RAMP, 24, 8) >= 128) == expected).all()


def test_the_first_of_several_pictures(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "blue")]
    for name in ("a.png", "a.webp"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert image(tmp_path / name)[0, 0].tolist() == [255, 0, 0]


def test_a_picture_that_is_not_rgb_is_written_and_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).convert("CMYK").save(buffer, "JPEG")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    with Image.open(tmp_path / "a.jpg") as opened:
        assert (image(tmp_path / "a.jpg") == np.asarray(opened.convert("RGB"))).all()
