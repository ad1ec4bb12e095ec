"""Builds of engine files in a real child process, over the stand-in for TensorRT."""

from __future__ import annotations

import json
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from edgediff.bundle.reading import read_bundle
from edgediff.engines.tensorrt import installed
from edgediff.engines.tensorrt.build import COMMAND
from edgediff.engines.tensorrt.builder import BuildOrder, read_order
from edgediff.engines.tensorrt.cache import EngineCache
from edgediff.engines.tensorrt.child import BuildCancelled, environment
from edgediff.engines.tensorrt.options import BuildOptions
from edgediff.engines.tensorrt.profiles import Ranges, profile
from edgediff.engines.tensorrt.source import source_of
from edgediff.errors import EngineError

from .conftest import GPU
from .helpers import build, files


def test_progress_and_the_engine_file(
    standin: Any, half_bundle: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEDIFF_STANDIN_STEP", "0.12")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 3")
    told: list[tuple[str, float, str]] = []
    options = BuildOptions(workspace=1 << 28, level=4, hardware="ampere_plus", version_compatible=True)
    built = build(half_bundle, "unet", cache, options, ordinal=1, progress=lambda *event: told.append(event))
    assert told == [
        *(("unet", round((k + 1) / 8, 4), "Tactics") for k in range(4)),
        ("unet", 1.0, ""),
    ]
    assert built.path is not None
    facts = json.loads(built.path.read_bytes()[len(standin.MAGIC) :])
    graph = source_of(read_bundle(half_bundle), "unet")
    assert facts == {
        "graph": str(graph.path),
        "profile": {name: [list(s) for s in three] for name, three in built.profile.items()},
        "flags": ["VERSION_COMPATIBLE"],
        "limits": {"WORKSPACE": 1 << 28},
        "level": 4,
        "hardware": "AMPERE_PLUS",
        "gpu": "3",
    }
    assert built.platform.tensorrt == (10, 13, 3, 9)
    assert built.seconds > 0
    assert (built.platform.gpu, built.platform.capability, built.options) == (GPU.name, GPU.capability, options)
    assert cache.find(graph, "unet", installed.this_platform(0)) == ([built], [])
    assert not list(cache.folder.glob(".building-*"))


def test_options_that_tensorrt_refuses_in_its_log_alone(standin: Any, half_bundle: Path, cache: EngineCache) -> None:
    with pytest.raises(EngineError, match=r"unet: TensorRT 10\.13\.3\.9 refuses the options of this build: this GPU h"):
        build(half_bundle, "unet", cache, BuildOptions(workspace=1 << 41))
    assert files(cache) == []


def test_timings_are_kept(standin: Any, half_bundle: Path, cache: EngineCache) -> None:
    timing = cache.timing(installed.building_platform(0))
    for known in (b".", b".."):
        build(half_bundle, "vae_decoder", cache)
        assert timing.read_bytes() == known
    timing.write_bytes(b"of another TensorRT")
    build(half_bundle, "vae_decoder", cache)
    assert timing.read_bytes() == b"."


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("crash", r"unet: the build was killed by SIGSEGV"),
        ("exit", r"unet: the build ended with code 5: .*the library; gives up"),
        ("none", r"unet: TensorRT 10\.13\.3\.9 made no engine: no kernel for node 7"),
        ("raise", r"unet: RuntimeError: out of luck"),
        ("profile", r"unet: TensorRT 10\.13\.3\.9 refuses the profile \{'sample': .*: it does not say why"),
        ("start", r"unet: TensorRT 10\.13\.3\.9 cannot start: no kernel image"),
        (
            "unreadable",
            r"unet: TensorRT 10\.13\.3\.9 cannot read unet\.plain\.onnx: conv_in: no such operator",
        ),
    ],
)
def test_failures_say_why_and_leave_nothing(
    standin: Any,
    half_bundle: Path,
    cache: EngineCache,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    message: str,
) -> None:
    monkeypatch.setenv("EDGEDIFF_STANDIN", how)
    with pytest.raises(EngineError, match=message):
        build(half_bundle, "unet", cache)
    assert files(cache) == []


def test_cap_on_memory(standin: Any, half_bundle: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEDIFF_STANDIN", "memory")
    with pytest.raises(EngineError, match=r"took 0\.\d GB of memory, above its limit of 0\.4 GB"):
        build(half_bundle, "unet", cache, BuildOptions(memory_limit=4 * 10**8))
    assert files(cache) == []


@pytest.mark.parametrize("how", ["hang", "deaf"])
def test_cancel(standin: Any, half_bundle: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    monkeypatch.setenv("EDGEDIFF_STANDIN", how)
    monkeypatch.setenv("EDGEDIFF_STANDIN_STEP", "0.15")
    monkeypatch.setattr("edgediff.engines.tensorrt.child.GRACE", 0.5)
    cancel, told = threading.Event(), []

    def progress(*event: Any) -> None:
        told.append(event)
        cancel.set()

    began = time.monotonic()
    with pytest.raises(BuildCancelled, match="unet: the build was cancelled"):
        build(half_bundle, "unet", cache, progress=progress, cancel=cancel)
    assert told
    assert time.monotonic() - began < 60
    assert files(cache) == []


def test_a_child_ends_with_its_parent(standin: Any, half_bundle: Path, tmp_path: Path) -> None:
    import subprocess

    bundle = read_bundle(half_bundle)
    shapes = {name: [list(s) for s in three] for name, three in profile(bundle, "vae_decoder", Ranges()).items()}
    order = BuildOrder(str(source_of(bundle, "vae_decoder").path), str(tmp_path / "engine"), shapes)
    env = environment(0) | {"EDGEDIFF_STANDIN": "hang"}
    child = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    assert child.stdin is not None
    child.stdin.write(json.dumps(asdict(order)) + "\n")
    child.stdin.close()  # as when the parent dies
    assert child.wait(60) == 3


def test_an_order_survives_its_journey() -> None:
    options = BuildOptions(Ranges(2, (8, 8), None, (16, 24)), level=2, hardware="ampere_plus", stripped=True)
    order = BuildOrder("a.onnx", "engine", {"sample": [[1, 4], [2, 4], [2, 8]]}, options, "timing.bin", background=True)
    assert read_order(json.dumps(asdict(order))) == order


def test_another_tensorrt_in_the_child(
    standin: Any, half_bundle: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEDIFF_STANDIN_VERSION", "11.4.0.106")
    with pytest.raises(
        EngineError, match=r"unet: the build found TensorRT 11\.4\.0\.106, this process has 10\.13\.3\.9"
    ):
        build(half_bundle, "unet", cache)
    assert not [name for name in files(cache) if name.startswith("engines/")]


def test_a_command_that_is_not_there(standin: Any, half_bundle: Path, cache: EngineCache) -> None:
    with pytest.raises(EngineError, match="unet: the build cannot start /no/such/python"):
        build(half_bundle, "unet", cache, command=["/no/such/python"])


def test_a_command_that_knows_nothing(standin: Any, half_bundle: Path, cache: EngineCache) -> None:
    with pytest.raises(EngineError, match="unet: the build ended without an engine file"):
        build(half_bundle, "unet", cache, command=[sys.executable, "-c", "print('[1]')"])
