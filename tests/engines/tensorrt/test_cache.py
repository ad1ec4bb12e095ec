"""The engine cache: what may run where, and what broken files do."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgediff.cache_folder import default_cache_folder
from edgediff.engines.tensorrt.cache import EngineCache
from edgediff.engines.tensorrt.engine_file import BuiltEngine, Platform
from edgediff.engines.tensorrt.options import BuildOptions
from edgediff.engines.tensorrt.profiles import Ranges
from edgediff.engines.tensorrt.source import EngineSource
from edgediff.errors import EngineError

from .helpers import files

PLATFORM = Platform("Orin", (8, 7), (10, 3, 0, 30), "linux-aarch64")


def described(**other: Any) -> BuiltEngine:
    """A description that differs from the usual one in the facts of ``other``."""
    of_platform = {name: other.pop(name) for name in ("gpu", "capability", "tensorrt", "machine") if name in other}
    options = {name: other.pop(name) for name in BuildOptions.__dataclass_fields__ if name in other}
    facts: dict[str, Any] = {
        "part": "unet",
        "graph": "ab" * 32,
        "weights": ("cd" * 32,),
        "platform": replace(PLATFORM, **of_platform),
        "profile": {"sample": ((1, 4), (2, 4), (2, 8))},
        "options": BuildOptions(**options),
    }
    return BuiltEngine(**(facts | other))


@pytest.mark.parametrize(
    "other",
    [
        {"part": "vae_decoder"},
        {"graph": "00" * 32},
        {"weights": ()},
        {"gpu": "Thor"},
        {"capability": (11, 0)},
        {"tensorrt": (10, 3, 0, 31)},
        {"machine": "linux-x86_64"},
        {"profile": {"sample": ((1, 4), (2, 4), (2, 9))}},
        {"level": 5},
        {"hardware": "ampere_plus"},
        {"version_compatible": True},
        {"stripped": True},
    ],
    ids=str,
)
def test_keys(other: dict[str, Any]) -> None:
    assert described(**other).key != described().key
    assert described(seconds=3.0, size=9, sha256="ee").key == described().key
    assert described(workspace=9, memory_limit=9, ranges=Ranges(2)).key == described().key


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({}, ""),
        ({"gpu": "Orin Nano"}, "was built for Orin Nano, this is Orin"),
        ({"capability": (11, 0)}, "was built for compute capability 11.0, this GPU has 8.7"),
        ({"machine": "linux-x86_64"}, "was built on linux-x86_64, this is linux-aarch64"),
        ({"tensorrt": (10, 13, 3, 9)}, "was built by TensorRT 10.13.3.9, this is 10.3.0.30"),
        ({"tensorrt": (10, 0, 1, 6), "version_compatible": True}, ""),
        (
            {"tensorrt": (11, 4, 0, 106), "version_compatible": True},
            "TensorRT 11.4.0.106, which is newer",
        ),
        ({"gpu": "A10", "capability": (8, 6), "hardware": "ampere_plus"}, ""),
        ({"gpu": "Orin Nano", "hardware": "same_compute_capability"}, ""),
        ({"capability": (8, 6), "hardware": "same_compute_capability"}, "was built for compute capability 8.6"),
    ],
    ids=str,
)
def test_what_may_run_here(other: dict[str, Any], reason: str) -> None:
    found = described(**other).why_not(PLATFORM)
    assert found.find(reason) >= 0 if reason else not found


def test_turing_does_not_run_ampere_plus() -> None:
    built = described(hardware="ampere_plus")
    assert "8.0 or above" in built.why_not(replace(PLATFORM, capability=(7, 5)))


def put(cache: EngineCache, **other: Any) -> BuiltEngine:
    with cache.scratch(1) as folder:
        (folder / "engine").write_bytes(b"an engine" * 100)
        return cache.publish(folder / "engine", described(**other))


def find(cache: EngineCache, built: BuiltEngine) -> tuple[list[BuiltEngine], list[str]]:
    return cache.find(EngineSource(Path(), built.graph, built.weights, 0), built.part, PLATFORM)


def test_what_goes_in_comes_out(cache: EngineCache) -> None:
    built = put(
        cache, level=2, seconds=4.5, workspace=1 << 20, ranges=Ranges(2, (8, 8), (16, 16), (16, 24)), stripped=True
    )
    assert built.path is not None
    assert (built.size, built.path.read_bytes()) == (900, b"an engine" * 100)
    assert find(cache, built) == ([built], [])
    assert files(cache) == [f"engines/{'ab' * 8}/unet-{built.key[:16]}.{e}" for e in ("engine", "json")]
    assert find(cache, replace(built, weights=("ee",)))[0] == []


def test_newest_first(cache: EngineCache) -> None:
    first, second = put(cache), put(cache, level=5)
    for built, age in ((first, 10), (second, 100)):
        assert built.path is not None
        os.utime(built.path.with_suffix(".json"), (time.time() - age,) * 2)
    assert find(cache, first)[0] == [first, second]


@pytest.mark.parametrize("how", ["truncated", "changed", "missing", "description", "half a description", "format"])
def test_broken_engine_files_are_passed_over(cache: EngineCache, how: str) -> None:
    built = put(cache)
    assert built.path is not None
    description = built.path.with_suffix(".json")
    if how == "truncated":
        built.path.write_bytes(built.path.read_bytes()[:-1])
    elif how == "changed":
        built.path.write_bytes(b"A" + built.path.read_bytes()[1:])
    elif how == "missing":
        built.path.unlink()
    elif how == "description":
        description.unlink()
    elif how == "half a description":
        description.write_text(description.read_text()[:50])
    else:
        description.write_text(json.dumps(json.loads(description.read_text()) | {"format": 99}))
    good, reasons = find(cache, built)
    assert good == []
    assert len(reasons) == (how != "description")


@pytest.mark.parametrize(
    "text",
    [
        *("5", "null", "[]", "{}", "not JSON", "[" * 100_000, '{"a":' * 100_000, "\xff", '{"format": 1}'),
        *('{"profile": []}', '{"format": 1, "profile": []}'),
        *({"profile": {"sample": [[1], [2]]}}, {"profile": {"sample": [[1], [2], ["3"]]}}, {"profile": []}),
        *({"size": 10**400}, {"size": "900"}, {"size": 0}, {"size": True}, {"seconds": math.inf}, {"seconds": None}),
        *({"part": 5}, {"graph": []}, {"weights": 5}, {"weights": [5]}, {"sha256": None}, {"platform": []}),
        *({"options": 5}, {"options": {"ranges": 5}}, {"options": {"ranges": {"images": math.inf}}}, {"more": 1}),
        *({"profile": {"sample": [[math.inf], [1], [2]]}}, {"path": "/etc/passwd"}),
    ],
    ids=lambda text: str(text)[:40],
)
def test_descriptions_that_say_nothing_are_passed_over(cache: EngineCache, text: str | dict[str, Any]) -> None:
    built = put(cache)
    assert built.path is not None
    file = built.path.with_suffix(".json")
    if isinstance(text, dict):
        text = json.dumps(json.loads(file.read_text()) | text)
    file.write_text(text.replace("Infinity", "1e999"), encoding="latin-1")
    good, (reason,) = find(cache, built)
    assert good == []
    assert "the description cannot be read" in reason
    assert len(reason) < 1000


@pytest.mark.parametrize("facts", [{"gpu": 5}, {"capability": [8]}, {"capability": "87"}, {"tensorrt": [1.5]}], ids=str)
def test_a_platform_that_is_none(cache: EngineCache, facts: dict[str, Any]) -> None:
    built = put(cache)
    assert built.path is not None
    file = built.path.with_suffix(".json")
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"platform": data["platform"] | facts}))
    assert "the description cannot be read" in find(cache, built)[1][0]


@pytest.mark.skipif(sys.platform == "win32", reason="pipes and links as POSIX has them")
@pytest.mark.parametrize("suffix", [".json", ".engine"])
@pytest.mark.parametrize("how", ["pipe", "huge", "device", "dangling", "folder"])
def test_what_is_no_file_is_passed_over(cache: EngineCache, suffix: str, how: str) -> None:
    """At once: a pipe has no end."""
    built = put(cache)
    assert built.path is not None
    file = built.path.with_suffix(suffix)
    file.unlink()
    if how == "pipe":
        os.mkfifo(file)
    elif how == "huge":
        with file.open("wb") as f:
            f.truncate(1 << 40)  # a hole
    elif how == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero" if how == "device" else "nowhere")
    good, (reason,) = find(cache, built)
    assert good == []
    assert reason


def test_a_description_of_another_part(cache: EngineCache) -> None:
    built = put(cache)
    assert built.path is not None
    file = built.path.with_suffix(".json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"part": "vae_decoder"}))
    assert find(cache, built) == ([], [f"{file.stem}: describes an engine file of another part"])


@pytest.mark.skipif(sys.platform == "win32", reason="modes as POSIX has them")
@pytest.mark.parametrize("which", ["engine", "description", "folder", "engines", "cache"])
def test_what_everybody_may_write_is_not_run(cache: EngineCache, which: str) -> None:
    """Engine files carry code."""
    built = put(cache)
    assert built.path is not None
    path = {
        "engine": built.path,
        "description": built.path.with_suffix(".json"),
        "folder": built.path.parent,
        "engines": built.path.parents[1],
        "cache": cache.folder,
    }[which]
    path.chmod(0o777)
    good, (reason,) = find(cache, built)
    assert good == []
    assert f"every user of this machine can write {path}, and engine files carry code; run: chmod o-w {path}" in reason
    path.chmod(0o775)  # a group shares its cache
    assert find(cache, built)[0] == [built]


@pytest.mark.skipif(sys.platform == "win32", reason="modes as POSIX has them")
def test_a_build_where_everybody_may_write(cache: EngineCache) -> None:
    cache.folder.mkdir()
    cache.folder.chmod(0o777)
    with pytest.raises(EngineError, match="every user of this machine can write"), cache.scratch(1):
        pass
    cache.folder.chmod(0o700)
    before = os.umask(0)
    try:
        built = put(cache)
    finally:
        os.umask(before)
    assert find(cache, built)[0] == [built]


def test_drop(cache: EngineCache) -> None:
    built = put(cache)
    cache.drop(built)
    assert files(cache) == []


def test_no_room(cache: EngineCache) -> None:
    with pytest.raises(EngineError, match="GB free; an engine file needs about 1000000000"), cache.scratch(10**18):
        pass


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EngineError, match=r"the engine cache at .* cannot be written"):  # noqa: SIM117
        with EngineCache(tmp_path / "file").scratch(1):
            pass


BUILD = """
import sys
from pathlib import Path
from edgediff.engines.tensorrt.cache import EngineCache
with EngineCache(Path(sys.argv[1])).scratch(1) as folder:
    (folder / "engine").write_bytes(bytes(100))
    print(folder.name, flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_build_left_is_cleared_away(cache: EngineCache) -> None:
    """At once, and not what a build that lives is working in."""
    builds = []
    for _ in range(2):
        command = [sys.executable, "-c", BUILD, str(cache.folder)]
        build = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert build.stdout is not None
        builds.append((build, cache.folder / build.stdout.readline().strip()))
    (living, new), (dead, old) = builds
    dead.kill()
    dead.communicate()
    mine = cache.folder / ".building-notes"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years")  # no build made it
    link = cache.folder / ".building-link"
    if sys.platform != "win32":
        link.symlink_to(mine)
    assert (old / "engine").is_file()
    with cache.scratch(1):
        assert not old.exists()
        assert (new / "engine").is_file()
    living.communicate("")
    assert not new.exists()
    assert (mine / "thesis.txt").read_text() == "years"


def test_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEDIFF_CACHE", str(tmp_path))
    assert default_cache_folder() == tmp_path
    monkeypatch.delenv("EDGEDIFF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert default_cache_folder() == tmp_path / "edgediff"
