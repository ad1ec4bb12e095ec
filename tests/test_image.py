"""Pixels, files with parameters inside, and paths that cannot be written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgediff import ArgumentError, MemoryLimitError, OutputError, PromptWarning, save
from edgediff.image import EXIF_IFD, USER_COMMENT, to_pil, to_uint8

TEXT = "a red apple 🍎\nSteps: 2, Seed: 5"


def picture() -> Image.Image:
    rng = np.random.default_rng(0)
    return to_pil(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8), TEXT)


def test_to_uint8() -> None:
    values = np.array([-1.5, -1, 0, 1, 9, 1 - 1 / 127.5], np.float32).reshape(1, 1, 1, 6).repeat(3, axis=1)
    out = to_uint8(values)
    assert out.shape == (1, 1, 6, 3)
    assert out[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 254]


def test_png(tmp_path: Path) -> None:
    image = picture()
    assert save(image, tmp_path / "a.PNG") == tmp_path / "a.PNG"
    with Image.open(tmp_path / "a.PNG") as back:
        back.load()
        assert back.text["parameters"] == TEXT
        np.testing.assert_array_equal(np.asarray(back), np.asarray(image))


@pytest.mark.parametrize("name", ["a.webp", "a.jpg", "a.jpeg"])
def test_exif(tmp_path: Path, name: str) -> None:
    save(picture(), tmp_path / name)
    with Image.open(tmp_path / name) as back:
        comment = back.getexif().get_ifd(EXIF_IFD)[USER_COMMENT]
    assert comment[:8] == b"UNICODE\0"
    assert comment[8:].decode("utf-16-be") == TEXT


def test_overwrites_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    save(picture(), path)
    with Image.open(path) as back:
        assert back.size == (24, 16)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_bad_paths(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "a.gif", r"no format '\.gif'; choose from \.png, \.webp"),
        (tmp_path / "none" / "a.png", "the folder .* does not exist"),
        (tmp_path, "no format ''"),
        (Path("/proc/a.png"), "cannot write /proc/a.png"),
    ):
        with pytest.raises(OutputError, match=message):
            save(picture(), path)
    with pytest.raises(ArgumentError, match="image is list; save takes one Pillow image"):
        save([picture()], tmp_path / "a.png")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="image is 0x4 pixels; there is nothing to write"):
        save(Image.new("RGB", (0, 4)), tmp_path / "a.webp")
    with pytest.raises(ArgumentError, match="path is None"):
        save(picture(), None)  # type: ignore[arg-type]
    folder = tmp_path / "folder.png"
    folder.mkdir()
    with pytest.raises(OutputError, match="it is a folder"):
        save(picture(), folder)
    assert list(tmp_path.iterdir()) == [folder]


def test_no_permission_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(OutputError, match="Permission denied"):
        save(picture(), tmp_path / "a.png")


def test_long_names_and_long_parameters(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="name too long"):
        save(picture(), tmp_path / ("a" * 300 + ".png"))
    image = picture()
    facts = "Steps: 2, Seed: 5"
    image.info["parameters"] = long = "x" + "🍎" * 40_000 + f"\n{facts}"
    with pytest.warns(PromptWarning, match="a JPEG holds 30000 characters of parameters, and these are 40019: the end"):
        save(image, tmp_path / "a.jpg")  # EXIF ends at 64 KB
    save(image, tmp_path / "a.webp")
    with Image.open(tmp_path / "a.jpg") as back:
        text = back.getexif().get_ifd(EXIF_IFD)[USER_COMMENT][8:].decode("utf-16-be")
    assert text.startswith("x🍎🍎")
    assert text.endswith(f"🍎\n{facts}")
    with Image.open(tmp_path / "a.webp") as back:
        assert back.getexif().get_ifd(EXIF_IFD)[USER_COMMENT][8:].decode("utf-16-be") == long
    with pytest.raises(OutputError, match=r"cannot write .*wide\.webp"):
        save(image.resize((16_500, 1)), tmp_path / "wide.webp")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jpg", "a.webp"]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (5, r"image\.info\['parameters'\] is 5; it must be text"),
        (b"Steps: 2", "is b'Steps: 2'; it must be text"),
        ("red \ud800", r"is no Unicode text: 'red \\ud800'"),
        ("\ud800" * 10**6, r"is no Unicode text: .*\(1000000 in all\)"),
    ],
)
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_parameters_that_are_no_text(tmp_path: Path, parameters: Any, said: str, name: str) -> None:
    image = picture()
    image.info["parameters"] = parameters
    with pytest.raises(ArgumentError, match=said):
        save(image, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_any_object_with_a_method_save_is_no_picture(tmp_path: Path) -> None:
    class Model:
        def save(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("not a picture")

    with pytest.raises(ArgumentError, match="image is Model; save takes one Pillow image"):
        save(Model(), tmp_path / "a.png")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (Image.new("F", (4, 4)), "a.png"),
        (Image.new("RGBA", (4, 4)), "a.jpg"),
        (Image.new("RGB", (4, 4)), "a\0.png"),
        (Image.new("RGB", (4, 4)), "a\ud800.png"),
        (Image.new("RGB", (4, 4)), "x" * 10**6 + ".png"),
        (Image.new("RGB", (4, 4)), "a." + "x" * 10**6),
    ],
)
def test_what_cannot_be_written_is_an_output_error(tmp_path: Path, image: Image.Image, name: str) -> None:
    with pytest.raises(OutputError, match=r"^cannot write ") as caught:
        save(image, tmp_path / name)
    assert len(str(caught.value)) < 2000
    assert str(caught.value).isprintable()
    assert not list(tmp_path.iterdir())


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    save(picture(), tmp_path / "a.png")
    (tmp_path / "b").write_bytes(b"")
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match="No space left on device"):
        save(picture(), path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_memory_that_ends_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    image = picture()
    monkeypatch.setattr(image, "save", fail)
    with pytest.raises(MemoryLimitError, match=r"cannot write .*a\.png: there is no memory for it"):
        save(image, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
