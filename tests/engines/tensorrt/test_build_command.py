"""``edgediff build``, and what ``edgediff info`` says of engine files."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from edgediff.cli import main as cli
from edgediff.cli.generate import watch
from edgediff.engines.tensorrt.cache import EngineCache

from ...support.gpu import has_driver
from .conftest import GPU


def described(cache: EngineCache) -> dict[str, Any]:
    return {
        facts["part"]: facts
        for facts in (json.loads(file.read_text(encoding="utf-8")) for file in cache.folder.rglob("*.json"))
    }


def test_builds_what_a_call_needs_once(
    standin: Any, half_bundle: Path, cache: EngineCache, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["build", str(half_bundle), "--engine-cache", str(cache.folder)]
    assert cli.main(command) == 0
    captured = capsys.readouterr()
    assert [line.split()[0] for line in captured.out.splitlines()] == ["built"] * 3
    assert captured.err == ""  # no terminal
    assert list(described(cache)) and set(described(cache)) == {"text_encoder", "unet", "vae_decoder"}  # noqa: PT018
    assert cli.main(command) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["there"] * 3
    assert cli.main([*command, "--part", "unet", "--force"]) == 0
    assert capsys.readouterr().out.startswith("built ")


def test_options(standin: Any, half_bundle: Path, cache: EngineCache) -> None:
    options = "--part vae_decoder --images 3 --sizes 16x16..64x64 --chunks 2 --workspace 64 --level 1 --stripped"
    options += " --hardware ampere_plus --version-compatible --device cuda:0"
    assert cli.main(["build", str(half_bundle), "--engine-cache", str(cache.folder), *options.split()]) == 0
    facts = described(cache)["vae_decoder"]
    assert facts["profile"] == {"latent_sample": [[1, 4, 4, 4], [3, 4, 8, 8], [3, 4, 16, 16]]}
    assert facts["options"] == {
        "ranges": {"images": 3, "least": [16, 16], "best": None, "most": [64, 64], "chunks": 2},
        "workspace": 64 << 20,
        "level": 1,
        "hardware": "ampere_plus",
        "version_compatible": True,
        "stripped": True,
        "memory_limit": None,
    }
    options = "--part unet --size 40x24"
    assert cli.main(["build", str(half_bundle), "--engine-cache", str(cache.folder), *options.split()]) == 0
    assert described(cache)["unet"]["profile"]["sample"] == [[1, 4, 6, 10], [2, 4, 6, 10], [2, 4, 6, 10]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--part nose", "bundle 'half' has no part 'nose'; choose from text_encoder, unet"),
        ("--device cpu", "device is 'cpu'; engine files are built on cuda, or cuda:N"),
        ("--sizes 16x16", "sizes is '16x16'; write it as WxH..WxH"),
        ("--size 17x16", "size 17x16: both must be multiples of 4"),
        ("--images 0", "images is 0; it must be 1 .. 64"),
        ("--level 7", "level is 7; it must be 0 .. 5"),
    ],
)
def test_bad_options_before_any_work(
    standin: Any, half_bundle: Path, cache: EngineCache, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    assert cli.main(["build", str(half_bundle), "--engine-cache", str(cache.folder), *options.split()]) == 2
    assert message in capsys.readouterr().err
    assert not cache.folder.exists()


def test_one_part_that_cannot_be_built_is_said_before_any_work(
    standin: Any, tiny_bundle: Path, cache: EngineCache, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["build", str(tiny_bundle), "--engine-cache", str(cache.folder)]) == 2
    assert "TensorRT builds from graphs exported with --precision fp16" in capsys.readouterr().err
    assert not cache.folder.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_bar(standin: Any, half_bundle: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEDIFF_STANDIN_STEP", "0.12")
    leader, follower = os.openpty()
    fcntl, termios = importlib.import_module("fcntl"), importlib.import_module("termios")
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with os.fdopen(follower, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert cli.main(["build", str(half_bundle), "--engine-cache", str(cache.folder), "--part", "unet"]) == 0
    shown = ""
    with contextlib.suppress(OSError):  # which ends a pseudo-terminal
        while piece := os.read(leader, 1 << 12):
            shown += piece.decode()
    assert re.search(r"unet: +[0-9]+%\|.*left, Tactics", shown)
    assert re.search(r"\r *\r$", shown)  # it is gone when it is done


def test_info(
    standin: Any,
    half_bundle: Path,
    cache: EngineCache,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("edgediff.engines.tensorrt.backend.why_no_device", lambda ordinal: "")
    command = ["info", str(half_bundle), "--engine-cache", str(cache.folder)]
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert "engines    of every part" in text
    assert "no engine file was built; run: edgediff build" in text
    assert cli.main(["build", *command[1:], "--part", "unet"]) == 0
    capsys.readouterr()
    assert cli.main(command) == 0
    text = capsys.readouterr().out
    assert "engines    of unet\n           cuda  TensorRT      yes  10.13.3.9, " in text
    assert "engines    of text_encoder, vae_decoder, vae_encoder\n" in text
    monkeypatch.setattr(standin, "__version__", "10.3.0")
    assert cli.main(command) == 0
    assert "was built by TensorRT 10.13.3.9, this is 10.3.0" in capsys.readouterr().out


@pytest.mark.skipif(has_driver(), reason="there is a driver here")
def test_info_says_all_that_is_missing(
    tiny_bundle: Path, cache: EngineCache, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["info", str(tiny_bundle), "--engine-cache", str(cache.folder)]) == 0
    text = capsys.readouterr().out
    for reason in ("no NVIDIA driver", "TensorRT is not installed", "exported with --precision fp16"):
        assert reason in text


def test_gpu_is_described(standin: Any, half_bundle: Path, cache: EngineCache) -> None:
    assert cli.main(["build", str(half_bundle), "--engine-cache", str(cache.folder), "--part", "vae_decoder"]) == 0
    facts = described(cache)["vae_decoder"]["platform"]
    assert (facts["gpu"], tuple(facts["capability"]), facts["tensorrt"]) == (GPU.name, GPU.capability, [10, 13, 3, 9])


def test_export_and_build_in_one(
    standin: Any, tiny_source: Path, cache: EngineCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from edgediff_export.__main__ import main

    monkeypatch.setenv("EDGEDIFF_CACHE", str(cache.folder))
    command = [str(tiny_source), str(tmp_path / "out"), "--build"]
    assert main(command) == 2
    assert "--build needs --precision fp16" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*command, "--precision", "fp16"]) == 0
    assert set(described(cache)) == {"text_encoder", "unet", "vae_decoder"}


@pytest.mark.skipif(has_driver(), reason="there is a driver here")
def test_export_says_before_any_work_that_it_cannot_build(tiny_source: Path, tmp_path: Path, capsys: Any) -> None:
    from edgediff_export.__main__ import main

    assert main([str(tiny_source), str(tmp_path / "out"), "--build", "--precision", "fp16"]) == 2
    assert "no NVIDIA driver" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_generate_stays_for_engine_files_that_are_being_built(capsys: pytest.CaptureFixture[str]) -> None:
    from edgediff.engines.background_build import Build
    from edgediff.errors import EngineError

    def one(part: str, progress: Any, cancel: Any) -> Any:
        progress(part, 0.5, "Tactics")
        if part == "unet":
            raise EngineError("unet: no kernel for node 7")
        return part

    ready: list[Any] = []
    build = Build(("unet", "vae_decoder"), one, ready.append)
    watch(build)
    assert not build.running
    assert ready == ["vae_decoder"]
    assert capsys.readouterr().err == "edgediff: warning: unet: no kernel for node 7\n"


def test_no_home(
    standin: Any, half_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is the folder of engine files that is missing, and that is what is said where one is wanted."""

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("EDGEDIFF_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", home)
    monkeypatch.setattr("edgediff.engines.tensorrt.backend.why_no_device", lambda ordinal: "")
    assert cli.main(["build", str(half_bundle)]) == 2
    said = (
        "there is no folder for what is built for this machine, since this user has no home; name one by EDGEDIFF_CACHE"
    )
    assert capsys.readouterr().err.startswith(f"edgediff: {said}")
    assert cli.main(["info", str(half_bundle)]) == 0
    assert said in capsys.readouterr().out
