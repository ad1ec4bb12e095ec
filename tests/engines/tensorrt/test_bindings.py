"""Our calls of TensorRT against the real Python bindings of three releases, with neither a GPU nor TensorRT."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines.tensorrt import bindings
from tests.engines.tensorrt.sources import ROOT, Message, Source, Vocabulary, mypy, our_sources

RELEASES = list(bindings.BINDINGS)
SAMPLES = Path(__file__).resolve().with_name("samples")
RIGHT, UNCHECKED, WRONG = (SAMPLES / f"{name}.py" for name in ("right", "unchecked", "wrong"))
SOURCES = [*our_sources(), RIGHT]


@pytest.fixture(scope="session")
def found(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | str]:
    """For each release the folder with its types, or why there is none."""
    folder = tmp_path_factory.mktemp("tensorrt")
    each: dict[str, Path | str] = {}
    for release in RELEASES:
        try:
            each[release] = bindings.stub(release, wheels, folder / release)
        except bindings.Unavailable as error:
            each[release] = f"TensorRT's bindings cannot be had: {error}"
    return each


@pytest.fixture(scope="session")
def types(found: dict[str, Path | str]) -> list[Path]:
    """The folders of all releases: what one of them lacks, another must have."""
    for each in found.values():
        if isinstance(each, str):
            pytest.skip(each)
    return [Path(each) for each in found.values()]


@pytest.fixture(scope="session", params=RELEASES)
def release(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def messages(release: str, found: dict[str, Path | str], wheels: Path) -> list[Message]:
    """What mypy says with a release's types."""
    types = found[release]
    if isinstance(types, str):
        pytest.skip(types)
    return mypy([*SOURCES, WRONG], types, wheels / "mypy")


def marked(path: Path, mark: str, word: str = "") -> set[int]:
    """The lines with a comment of that mark, and of those words if any."""
    lines = [line.partition(mark) for line in path.read_text().splitlines()]
    return {number for number, (_, found, words) in enumerate(lines, 1) if found and word in ("", *words.split())}


def test_every_release_has_what_we_call(messages: list[Message]) -> None:
    assert [str(message) for message in messages if message.is_error and message.path != WRONG] == []


def test_lean_runtime_has_what_runs_engines(wheels: Path, tmp_path: Path) -> None:
    try:
        types = bindings.lean_stub(wheels, tmp_path)
    except bindings.Unavailable as error:
        pytest.skip(f"TensorRT's lean runtime cannot be had: {error}")
    said = mypy([ROOT / "edgediff" / "engines" / "tensorrt" / "engine.py", RIGHT], types, wheels / "mypy")
    assert [str(message) for message in said if message.is_error and message.path != RIGHT] == []
    # It cannot build, and its types say so.
    assert any('no attribute "OnnxParser"' in message.text for message in said)


def test_mistakes_are_reported(messages: list[Message], release: str) -> None:
    reported = {message.span[0] for message in messages if message.path == WRONG and message.is_error}
    assert reported == marked(WRONG, "# wrong in", release)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_call_of_ours_escapes_the_types(types: list[Path], wheels: Path, tmp_path: Path, path: Path) -> None:
    assert Source(path, Vocabulary(types)).unchecked(types, wheels / "mypy", tmp_path) == []


def test_calls_that_escape_are_refused(types: list[Path], wheels: Path, tmp_path: Path) -> None:
    refused = Source(UNCHECKED, Vocabulary(types)).unchecked(types, wheels / "mypy", tmp_path)
    assert {int(line.split(":")[1]) for line in refused} == marked(UNCHECKED, "# refused")
