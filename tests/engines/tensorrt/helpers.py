"""What tests of TensorRT's engine files share: builds by the stand-in, pipelines on a device in host memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import edgediff
from edgediff.bundle.reading import read_bundle
from edgediff.engines.base import EngineOptions
from edgediff.engines.tensorrt import installed
from edgediff.engines.tensorrt.build import build_part
from edgediff.engines.tensorrt.cache import EngineCache
from edgediff.engines.tensorrt.engine_file import BuiltEngine
from edgediff.engines.tensorrt.options import BuildOptions
from edgediff.engines.tensorrt.source import source_of
from edgediff.pipeline import Pipeline

from ...support.host_device import CountingDevice

PROMPT = "a cat"


def build(bundle: Path, part: str, cache: EngineCache, options: BuildOptions | None = None, **more: Any) -> BuiltEngine:
    platform = installed.building_platform(0)
    return build_part(read_bundle(bundle), part, options or BuildOptions(), platform, cache, **more)


def opened(bundle: Path, cache: EngineCache, engine: str | None = None) -> tuple[Pipeline, CountingDevice]:
    pytest.importorskip("edgediff_kernels", reason="edgediff-kernels is not installed")
    device = CountingDevice()
    options = EngineOptions(engine=engine, engine_cache=cache.folder)
    return Pipeline(read_bundle(bundle), options, device), device


def files(cache: EngineCache) -> list[str]:
    return sorted(p.relative_to(cache.folder).as_posix() for p in cache.folder.rglob("*") if p.is_file())


def build_all(bundle: Path, cache: EngineCache, options: BuildOptions | None = None) -> None:
    for part in read_bundle(bundle).needed:
        build(bundle, part, cache, options)


def reference(bundle: Path) -> Pipeline:
    """The graphs that engine files are built from, by ONNX Runtime and the host loop."""
    from edgediff.engines.session import OnnxRuntimeEngine

    pipe = edgediff.load(bundle)
    for part in pipe.bundle.needed:
        graph = source_of(pipe.bundle, part)
        pipe.set_engine(part, OnnxRuntimeEngine(part, graph.path, pipe.bundle.parts[part]))
    return pipe
