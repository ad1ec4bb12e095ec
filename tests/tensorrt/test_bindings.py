"""Our calls of TensorRT against the real Python bindings of three releases, with neither a GPU nor TensorRT."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tensorrt import bindings
from tests.tensorrt.sources import Message, Source, Vocabulary, mypy, our_sources

RELEASES = list(bindings.BINDINGS)
SAMPLES = Path(__file__).with_name("samples")
RIGHT, UNCHECKED, WRONG = (SAMPLES / f"{name}.py" for name in ("right", "unchecked", "wrong"))
SOURCES = [*our_sources(), RIGHT]


@pytest.fixture(scope="session")
def types(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder with the types of each release."""
    folder = tmp_path_factory.mktemp("tensorrt")
    try:
        return {release: bindings.stub(release, wheels, folder / release) for release in RELEASES}
    except bindings.Unavailable as error:
        pytest.skip(f"TensorRT's bindings cannot be had: {error}")


@pytest.fixture(scope="session")
def messages(types: dict[str, Path], wheels: Path) -> dict[str, list[Message]]:
    """What mypy says with each release's types."""
    return {release: mypy([*SOURCES, WRONG], folder, wheels / "mypy") for release, folder in types.items()}


def marked(path: Path, mark: str, word: str = "") -> set[int]:
    """The lines with a comment of that mark, and of those words if any."""
    lines = [line.partition(mark) for line in path.read_text().splitlines()]
    return {number for number, (_, found, words) in enumerate(lines, 1) if found and word in ("", *words.split())}


@pytest.mark.parametrize("release", RELEASES)
def test_every_release_has_what_we_call(messages: dict[str, list[Message]], release: str) -> None:
    assert [str(message) for message in messages[release] if message.path != WRONG] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_call_of_ours_escapes_the_types(types: dict[str, Path], wheels: Path, tmp_path: Path, path: Path) -> None:
    source = Source(path, Vocabulary(types.values()))
    assert source.unchecked(types.values(), wheels / "mypy", tmp_path) == []


@pytest.mark.parametrize("release", RELEASES)
def test_mistakes_are_reported(messages: dict[str, list[Message]], release: str) -> None:
    reported = {message.span[0] for message in messages[release] if message.path == WRONG and message.is_error}
    assert reported == marked(WRONG, "# wrong in", release)


def test_calls_that_escape_are_refused(types: dict[str, Path], wheels: Path, tmp_path: Path) -> None:
    refused = Source(UNCHECKED, Vocabulary(types.values())).unchecked(types.values(), wheels / "mypy", tmp_path)
    assert {int(line.split(":")[1]) for line in refused} == marked(UNCHECKED, "# refused")
