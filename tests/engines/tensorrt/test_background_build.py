"""engine="auto": ONNX Runtime serves while engine files are built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgediff
from edgediff.bundle.reading import read_bundle
from edgediff.engines.background_build import build_missing
from edgediff.engines.base import EngineOptions
from edgediff.engines.tensorrt import installed
from edgediff.engines.tensorrt.cache import EngineCache
from edgediff.engines.tensorrt.options import BuildOptions
from edgediff.errors import ArgumentError, EngineError

from .conftest import GPU
from .helpers import PROMPT, files, opened, reference


def test_serves_at_once_and_swaps_between_calls(
    standin: Any, half_bundle: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEDIFF_STANDIN_STEP", "0.5")
    pipe, _ = opened(half_bundle, cache, "auto")
    work = pipe.build_engines(BuildOptions())
    assert work is not None
    assert work.parts == ("unet", "text_encoder", "vae_decoder")
    call: dict[str, Any] = {"seed": 1, "num_inference_steps": 3, "output_type": "latent"}
    running = pipe.stream(PROMPT, **call)
    next(running)
    before = edgediff.load(half_bundle)(PROMPT, **call).latents
    assert work.wait(60)
    assert work.errors == {}
    assert work.share == 1.0
    last = list(running)[-1]
    np.testing.assert_allclose(last.latents, before, atol=1e-5)  # went on as it had begun
    assert type(pipe.engine("unet")).__name__ == "TensorRTEngine"
    after = reference(half_bundle)(PROMPT, **call).latents
    np.testing.assert_array_equal(pipe(PROMPT, **call).latents, after)
    assert pipe.build_engines(BuildOptions()) is work  # nothing is missing
    again, _ = opened(half_bundle, cache, "auto")
    assert again.build_engines(BuildOptions()) is None


def test_a_failed_build_leaves_onnx_runtime(
    standin: Any, half_bundle: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEDIFF_STANDIN", "crash")
    pipe, _ = opened(half_bundle, cache, "auto")
    work = pipe.build_engines(BuildOptions())
    assert work is not None
    assert work.wait(60)
    assert "killed by SIGSEGV" in str(work.errors["unet"])
    assert pipe(PROMPT, seed=0, num_inference_steps=2).images
    assert files(cache) == []


def test_without_tensorrt_onnx_runtime_serves(
    half_bundle: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "probe", lambda ordinal: GPU)
    installed.module.cache_clear()
    pipe, _ = opened(half_bundle, cache, "auto")
    work = pipe.build_engines()
    assert work is not None
    assert work.wait(60)
    assert {str(error).split(";")[0] for error in work.errors.values()} == {"TensorRT is not installed"}
    assert pipe(PROMPT, seed=0, num_inference_steps=2).images


def test_cancel_ends_all(standin: Any, half_bundle: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEDIFF_STANDIN", "hang")
    pipe, _ = opened(half_bundle, cache, "auto")
    work = pipe.build_engines(BuildOptions())
    assert work is not None
    work.cancel()
    assert work.wait(60)
    assert list(work.errors) == ["unet"]


def test_where_onnx_runtime_cannot_serve_the_engine_is_waited_for(
    standin: Any, half_bundle: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any, **__: Any) -> Any:
        raise EngineError("ONNX Runtime has no CUDAExecutionProvider")

    monkeypatch.setattr("edgediff.engines.onnxruntime.OnnxRuntime.open", none)
    pipe, _ = opened(half_bundle, cache, "auto")
    pipe.build_engines(BuildOptions())
    made = pipe(PROMPT, seed=1, num_inference_steps=2, output_type="latent")
    wanted = reference(half_bundle)(PROMPT, seed=1, num_inference_steps=2, output_type="latent")
    np.testing.assert_array_equal(made.latents, wanted.latents)


def test_nothing_to_build_from(standin: Any, tiny_bundle: Path, cache: EngineCache) -> None:
    pipe, _ = opened(tiny_bundle, cache, "auto")
    work = pipe.build_engines(BuildOptions())
    assert work is not None
    assert work.wait(60)
    assert "exported with --precision fp16" in str(work.errors["unet"])
    assert pipe(PROMPT, seed=0, num_inference_steps=2).images


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "trt"}, "no engine 'trt'; choose from onnx, tensorrt, auto"),
        ({"engine": "auto"}, "engine 'auto' needs device='cuda'; the CPU's is 'onnx'"),
        ({"engine": "tensorrt", "device": "cuda", "providers": ["CUDAExecutionProvider"]}, "providers are ONNX"),
        ({"engine_cache": 3}, "engine_cache is 3; it must be a path"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        edgediff.load(**arguments)


def test_nothing_runs_from_a_strangers_folder(standin: Any, half_bundle: Path, cache: EngineCache, trap: Path) -> None:
    ready: list[str] = []
    build = build_missing(read_bundle(half_bundle), 0, EngineOptions(engine_cache=cache.folder), ready.append)
    assert build is not None
    assert build.wait(120)
    assert build.errors == {}
    assert set(ready) == {"text_encoder", "unet", "vae_decoder"}
    assert not trap.exists()
