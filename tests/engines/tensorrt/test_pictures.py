"""Pictures through engine files, over the stand-in for TensorRT, on a device in host memory."""

from __future__ import annotations

import gc
import json
import shutil
import sys
import threading
import weakref
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import edgediff
from edgediff.engines.tensorrt.cache import EngineCache
from edgediff.engines.tensorrt.options import BuildOptions
from edgediff.engines.tensorrt.profiles import Ranges
from edgediff.errors import EngineError
from edgediff.verify import prove

from .helpers import PROMPT, build, build_all, files, opened, reference


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engine files by the default options, once they are built."""
    return tmp_path_factory.mktemp("engines") / "kept"


@pytest.fixture
def filled(standin: Any, half_bundle: Path, cache: EngineCache, kept: Path) -> EngineCache:
    """The cache, with engine files of every part that a call needs."""
    if not kept.exists():
        build_all(half_bundle, EngineCache(kept))
    shutil.copytree(kept, cache.folder)
    return cache


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"sampler": "euler_a", "rng": "torch-cpu"},
        {"guidance_interval": (0.2, 0.7)},
        {"guidance_scale": 1.0},
        {"height": 40, "width": 24},
        {"prompt": " ".join(["cat"] * 150)},
        {"guidance": "apg"},
    ],
    ids=str,
)
def test_the_graphs_own(standin: Any, half_bundle: Path, filled: EngineCache, arguments: dict[str, Any]) -> None:
    call = {"prompt": PROMPT, "negative_prompt": "dog", "seed": 3, "num_inference_steps": 6} | arguments
    if len(call["prompt"]) > 100:
        call["negative_prompt"] = call["prompt"].replace("cat", "dog")
    pipe, device = opened(half_bundle, filled, "tensorrt")
    wanted = reference(half_bundle)(**call, output_type="np")
    for _ in range(2):
        made = pipe(**call, output_type="np")
        np.testing.assert_array_equal(made.latents, wanted.latents)
        np.testing.assert_array_equal(made.images, wanted.images)
    if "guidance" not in arguments:  # apg runs by the host loop
        assert device.calls["launch"] >= 6  # captured, with a part whose memory is shared


def test_one_captured_graph_serves_every_request(standin: Any, half_bundle: Path, filled: EngineCache) -> None:
    pipe, device = opened(half_bundle, filled, "tensorrt")
    for seed in range(2):
        pipe(PROMPT, seed=seed, num_inference_steps=5)
    before, contexts = device.calls["capture"], standin.counts["contexts"]
    for seed in range(3):
        pipe(PROMPT, seed=seed, num_inference_steps=5)
    assert device.calls["capture"] == before  # the decoder's scratch memory has moved once, in the first request
    assert standin.counts["contexts"] == contexts


def test_requests_side_by_side_have_contexts_of_their_own(standin: Any, half_bundle: Path, filled: EngineCache) -> None:
    """A captured graph holds on to its context and its addresses."""
    pipe, _ = opened(half_bundle, filled, "tensorrt")
    streams = [pipe.stream(PROMPT, seed=seed, num_inference_steps=5) for seed in range(2)]
    last = [steps[-1] for steps in zip(*zip(*streams, strict=True), strict=True)]
    engine: Any = pipe.engine("unet")
    assert len(engine._contexts) == 2
    for context in engine._contexts.values():
        assert context.context.moved == 0
    for seed, step in enumerate(last):
        wanted = reference(half_bundle)(PROMPT, seed=seed, num_inference_steps=5, output_type="latent").latents
        np.testing.assert_array_equal(step.latents, wanted)


def test_engines_of_one_device_share_scratch_memory(standin: Any, half_bundle: Path, filled: EngineCache) -> None:
    pipe, device = opened(half_bundle, filled, "tensorrt")
    engines: list[Any] = [pipe.engine(part) for part in pipe.bundle.needed]
    other, _ = opened(half_bundle, filled, "tensorrt")
    assert len({id(engine._scratch) for engine in engines}) == 1
    assert cast(Any, other.engine("unet"))._scratch is not engines[0]._scratch
    scratch = weakref.ref(engines[0]._scratch)
    del pipe, device, engines
    gc.collect()
    assert scratch() is None  # it went with its device


def test_contexts_of_many_shapes(
    standin: Any, half_bundle: Path, filled: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, _ = opened(half_bundle, filled, "tensorrt")
    pipe(PROMPT, seed=0, num_inference_steps=3)
    monkeypatch.setattr(sys.modules["edgediff.engines.tensorrt.engine"], "MAX_CONTEXTS", 2)
    expected = reference(half_bundle)
    for size in (16, 24, 32, 40, 32, 16):
        call = {"seed": 1, "num_inference_steps": 4, "height": size, "width": 32, "output_type": "latent"}
        np.testing.assert_array_equal(pipe(PROMPT, **call).latents, expected(PROMPT, **call).latents)


def test_threads(standin: Any, half_bundle: Path, filled: EngineCache) -> None:
    pipe, _ = opened(half_bundle, filled)
    call = {"num_inference_steps": 4, "output_type": "latent"}
    wanted = [reference(half_bundle)(PROMPT, seed=k, **call).latents for k in range(4)]
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda k=k: found.update({k: pipe(PROMPT, seed=k, **call).latents})) for k in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, latents in enumerate(wanted):
        np.testing.assert_array_equal(found[k], latents)


def test_engine_files_without_weights(standin: Any, half_bundle: Path, cache: EngineCache) -> None:
    build_all(half_bundle, cache, BuildOptions(stripped=True))
    pipe, _ = opened(half_bundle, cache, "tensorrt")
    before = standin.counts["refits"]
    made = pipe(PROMPT, seed=1, num_inference_steps=2, output_type="latent")
    wanted = reference(half_bundle)(PROMPT, seed=1, num_inference_steps=2, output_type="latent")
    np.testing.assert_array_equal(made.latents, wanted.latents)
    assert standin.counts["refits"] - before == 2  # latents were asked for: no decoder


def test_version_compatible_engines_may_bring_their_runtime(
    standin: Any, half_bundle: Path, cache: EngineCache
) -> None:
    build_all(half_bundle, cache, BuildOptions(version_compatible=True))
    pipe, _ = opened(half_bundle, cache, "tensorrt")
    assert pipe.engine("unet").capture == "always"  # type: ignore[attr-defined]


def test_shapes_outside_the_profile_go_to_onnx_runtime(standin: Any, half_bundle: Path, filled: EngineCache) -> None:
    pipe, _ = opened(half_bundle, filled)
    call: dict[str, Any] = {"seed": 1, "num_inference_steps": 3, "output_type": "latent", "height": 64}
    runs = standin.counts["runs"]
    made = pipe(PROMPT, **call)
    assert standin.counts["runs"] == runs + 2  # the text encoder's
    np.testing.assert_allclose(made.latents, edgediff.load(half_bundle)(PROMPT, **call).latents, atol=1e-2)
    strict, _ = opened(half_bundle, filled, "tensorrt")
    with pytest.raises(EngineError, match=r"unet cannot run by TensorRT: sample is \[2, 4, 16, 8\], and the eng"):
        strict(PROMPT, **call)


def test_engines_are_proved_by_what_torch_gave(standin: Any, half_bundle: Path, filled: EngineCache) -> None:
    pipe, _ = opened(half_bundle, filled, "tensorrt")
    runs = standin.counts["runs"]
    found = {finding.what: finding for finding in prove(pipe)}
    assert all(finding.ok for finding in found.values() if finding.what != "vae_encoder")  # never built
    assert standin.counts["runs"] > runs
    narrow = EngineCache(filled.folder / "narrow")
    build(half_bundle, "vae_decoder", narrow, BuildOptions(Ranges(1, (8, 8), (8, 8), (8, 8))))
    pipe, _ = opened(half_bundle, narrow)
    found = {finding.what: finding for finding in prove(pipe)}
    assert found["vae_decoder"].detail.startswith("not proved: no golden input fits the engine: latent_sample is [")


def test_no_engine_file(standin: Any, half_bundle: Path, tiny_bundle: Path, cache: EngineCache) -> None:
    pipe, _ = opened(half_bundle, cache, "tensorrt")
    with pytest.raises(EngineError, match="text_encoder cannot run by TensorRT: no engine file was built; run: e"):
        pipe(PROMPT)
    pipe, _ = opened(tiny_bundle, cache, "tensorrt")
    with pytest.raises(EngineError, match="unet cannot run by TensorRT: TensorRT builds from graphs"):
        pipe.engine("unet")


def test_an_engine_file_that_does_not_open_is_passed_over(standin: Any, half_bundle: Path, cache: EngineCache) -> None:
    built = build(half_bundle, "unet", cache)
    assert built.path is not None
    other = built.path.read_bytes().replace(b"standin", b"another")
    built.path.write_bytes(other)
    text = built.path.with_suffix(".json")
    text.write_text(
        json.dumps(json.loads(text.read_text()) | {"sha256": __import__("hashlib").sha256(other).hexdigest()})
    )
    pipe, _ = opened(half_bundle, cache, "tensorrt")
    with pytest.raises(EngineError, match=r"TensorRT 10\.13\.3\.9 cannot open the engine file .*magic tag"):
        pipe.engine("unet")
    pipe, _ = opened(half_bundle, cache)
    assert type(pipe.engine("unet")).__name__ == "OnnxRuntimeStreamEngine"


def test_a_large_damaged_engine_file_leaves_the_cache(
    standin: Any, half_bundle: Path, cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(half_bundle, "unet", cache)
    assert built.path is not None
    built.path.write_bytes(built.path.read_bytes().replace(b"standin", b"another"))
    monkeypatch.setattr("edgediff.engines.tensorrt.engine_file.HASH_LIMIT", 0)  # as if it were large
    pipe, _ = opened(half_bundle, cache, "tensorrt")
    with pytest.raises(EngineError, match=r"is damaged \(another sha256 than when it was built"):
        pipe.engine("unet")
    assert not [name for name in files(cache) if name.startswith("engines/")]
