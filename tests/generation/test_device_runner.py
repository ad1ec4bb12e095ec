"""Whole requests through the device loop: the real engines and the real kernels, on a device in host memory."""

from __future__ import annotations

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgediff
from edgediff.engines.base import EngineOptions
from edgediff.engines.onnxruntime import BACKEND
from edgediff.errors import ArgumentError, EngineError
from edgediff.generation.runner_pool import IDLE_RUNNERS
from edgediff.pipeline import Pipeline
from edgediff.sampling.samplers import SAMPLERS

from ..support.family_names import FAMILIES
from ..support.gpu import has_driver
from ..support.host_device import CountingDevice, view

pytest.importorskip("edgediff_kernels", reason="edgediff-kernels is not installed")

PROMPT = "a red apple on a blue background"


def resident(pipe: Pipeline) -> tuple[Pipeline, CountingDevice]:
    """The same bundle on a device of host memory, its engines bound to addresses."""
    device = CountingDevice()
    return Pipeline(pipe.bundle, device=device), device


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return edgediff.load()


def latents(pipe: Pipeline, **arguments: Any) -> np.ndarray:
    return pipe(
        **({"prompt": PROMPT, "seed": 3, "num_inference_steps": 4, "output_type": "latent"} | arguments)
    ).latents


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_gives_the_host_loops_bits(pipe: Pipeline, sampler: str) -> None:
    np.testing.assert_array_equal(latents(resident(pipe)[0], sampler=sampler), latents(pipe, sampler=sampler))


@pytest.mark.parametrize(
    "arguments",
    [
        {"guidance_scale": 1.0},
        {"guidance_interval": (0.2, 0.8)},
        {"guidance": "cfg++", "guidance_scale": 0.6, "sampler": "ddim"},
        {"num_images_per_prompt": 3},
        {"prompt": ["a red apple", "a tiger on a green background"], "negative_prompt": "blue"},
        {"height": 96, "width": 64},
        {"seed": [5, 9], "prompt": [PROMPT] * 2, "sampler": "euler_a"},
        {"guidance_scale": [3.0, 2.0, 1.0, 4.0]},
    ],
    ids=str,
)
def test_arguments(pipe: Pipeline, arguments: dict[str, Any]) -> None:
    np.testing.assert_array_equal(latents(resident(pipe)[0], **arguments), latents(pipe, **arguments))


def test_given_latents(pipe: Pipeline) -> None:
    given = np.random.default_rng(0).standard_normal((1, 16, 8, 8), np.float32)
    np.testing.assert_array_equal(latents(resident(pipe)[0], latents=given), latents(pipe, latents=given))


def test_noise_of_torch_cuda_is_drawn_on_the_device(pipe: Pipeline) -> None:
    ours, device = resident(pipe)
    made = latents(ours, rng="torch-cuda", sampler="euler_a", num_inference_steps=3)  # before a graph is checked
    host = latents(pipe, rng="torch-cuda", sampler="euler_a", num_inference_steps=3)
    np.testing.assert_allclose(made, host, rtol=0, atol=1e-4)
    assert device.calls["upload"] == 4  # text, seeds, rows, header


@pytest.mark.parametrize(
    "arguments",
    [
        {"guidance": "apg"},
        {"guidance_rescale": 0.7},
        {"on_x0": lambda x0: x0 * 0.5},
        {"prompt": ["a red apple", " ".join(["tiger"] * 40)]},
    ],
    ids=["apg", "rescale", "hook", "lengths"],
)
def test_what_the_rows_do_not_hold_runs_on_the_host(pipe: Pipeline, arguments: dict[str, Any]) -> None:
    ours, device = resident(pipe)
    np.testing.assert_array_equal(latents(ours, **arguments), latents(pipe, **arguments))
    assert device.calls["launch"] == device.calls["upload"] == 0


def test_pictures_are_drawn_on_the_device(pipe: Pipeline) -> None:
    ours, _ = resident(pipe)
    made = ours(PROMPT, seed=3, num_inference_steps=4, output_type="np")
    host = pipe(PROMPT, seed=3, num_inference_steps=4, output_type="np")
    np.testing.assert_array_equal(made.images, host.images)
    assert made.parameters == host.parameters
    made = ours(PROMPT, seed=3, num_inference_steps=4).images[0]
    assert made.info["parameters"] == host.parameters[0]
    np.testing.assert_array_equal(np.asarray(made), host.images[0])


def test_streams_preview_cancel_and_keep_their_last_values(pipe: Pipeline) -> None:
    ours, _ = resident(pipe)
    for step, host in zip(
        ours.stream(PROMPT, seed=3, num_inference_steps=4),
        pipe.stream(PROMPT, seed=3, num_inference_steps=4),
        strict=True,
    ):
        np.testing.assert_array_equal(np.asarray(step.preview()[0]), np.asarray(host.preview()[0]))
        np.testing.assert_array_equal(np.asarray(step.decode()[0]), np.asarray(host.decode()[0]))
        np.testing.assert_array_equal(step.latents, host.latents)
    for cancelled in ours.stream(PROMPT, seed=4, num_inference_steps=4):
        if cancelled.index == 1:
            break
    ours(PROMPT, seed=8, num_inference_steps=4)  # another request in the same buffers
    np.testing.assert_array_equal(np.asarray(step.result().images[0]), np.asarray(host.result().images[0]))
    np.testing.assert_array_equal(np.asarray(step.preview()[0]), np.asarray(host.preview()[0]))
    with pytest.raises(ArgumentError, match="gone on"):
        cancelled.latents  # noqa: B018


def test_runners_are_used_again(pipe: Pipeline) -> None:
    ours, device = resident(pipe)
    latents(ours)
    blocks = len(device.memory)
    latents(ours, seed=9, sampler="lms", num_inference_steps=7)
    assert len(device.memory) == blocks
    for width in (64, 80, 96, 112, 128):
        latents(ours, width=width, num_inference_steps=1)
    assert len(device.memory) < 3 * blocks  # a few idle ones are kept, no more


def test_threads_do_not_disturb_each_other(pipe: Pipeline) -> None:
    ours, _ = resident(pipe)
    ours.warm()
    expected = [latents(pipe, seed=s) for s in range(4)]
    results: dict[int, np.ndarray] = {}

    def work(seed: int) -> None:
        results[seed] = latents(ours, seed=seed)

    threads = [threading.Thread(target=work, args=(s,)) for s in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for seed, wanted in enumerate(expected):
        np.testing.assert_array_equal(results[seed], wanted)


class Broken:
    """The U-Net's engine, with a NaN in its third output."""

    capture, warm_runs, key = "never", 0, None

    def __init__(self, engine: Any) -> None:
        self.engine, self.inputs, self.outputs, self.calls = engine, engine.inputs, engine.outputs, 0

    def __call__(self, **inputs: Any) -> Any:
        return self.engine(**inputs)

    def enqueue(self, inputs: Any, outputs: Any, stream: int) -> None:
        self.engine.enqueue(inputs, outputs, stream)
        self.calls += 1
        if self.calls == 3:
            view(outputs["out_sample"])[0, 0, 0, 0] = np.nan


def test_values_that_are_not_finite_name_the_part(pipe: Pipeline) -> None:
    ours, _ = resident(pipe)
    ours.set_engine("unet", Broken(ours.engine("unet")))
    with pytest.raises(EngineError, match="unet, step 3, gave values that are not finite"):
        latents(ours)
    assert np.isfinite(latents(ours)).all()


def test_engines_that_cannot_enqueue_run_by_the_host_loop(pipe: Pipeline) -> None:
    ours, device = resident(pipe)
    unet = pipe.engine("unet")
    ours.set_engine("unet", type("Plain", (), {"inputs": unet.inputs, "outputs": unet.outputs,
                                                "__call__": lambda self, **inputs: unet(**inputs)})())  # fmt: skip
    np.testing.assert_array_equal(latents(ours), latents(pipe))
    assert device.calls["upload"] == 0


def test_bad_addresses_are_engine_errors(pipe: Pipeline) -> None:
    from edgediff.device.array import DeviceArray

    device = CountingDevice()
    engine: Any = BACKEND.open(pipe.bundle, "vae_decoder", EngineOptions(), device)
    z = DeviceArray(device.allocate(1 << 20), (1, 15, 8, 8), "float32")
    out = DeviceArray(device.allocate(1 << 20), (1, 3, 64, 64), "float32")
    with pytest.raises(EngineError, match=r"vae_decoder failed on latent_sample float32\[1, 15, 8, 8\]"):
        engine.enqueue({"latent_sample": z}, {"sample": out}, 0)


class Full(CountingDevice):
    """Its memory ends in the middle of a loop's."""

    def allocate(self, size: int) -> int:
        if len(self.memory) == 5:
            raise EngineError("out of memory")
        return super().allocate(size)


def test_a_request_that_finds_no_memory_leaves_none_taken(pipe: Pipeline) -> None:
    device = Full()
    ours = Pipeline(pipe.bundle, device=device)
    with pytest.raises(EngineError, match="out of memory"):
        latents(ours)
    assert not device.memory


class Lost(CountingDevice):
    """A device whose memory cannot even be given back once it has failed."""

    def free(self, address: int) -> None:
        raise EngineError("freeing memory: it is lost")


def test_the_first_error_is_told(pipe: Pipeline) -> None:
    ours = Pipeline(pipe.bundle, device=Lost())
    ours.set_engine("unet", Broken(ours.engine("unet")))
    with pytest.raises(EngineError, match="unet, step 3, gave"):
        latents(ours)


def test_calls_of_an_engine_wait_for_the_device(pipe: Pipeline) -> None:
    ours, device = resident(pipe)
    engine = ours.engine("vae_decoder")
    z = np.zeros((1, 16, 8, 8), np.float32)
    done = threading.Event()
    thread = threading.Thread(target=lambda: (engine(latent_sample=z), done.set()))
    with device.lock:
        thread.start()
        assert not done.wait(0.3)
    assert done.wait(30)
    thread.join()


def test_runners_come_back_at_any_place(pipe: Pipeline) -> None:
    """The collector may close forgotten streams in this thread where a runner is given back, while another thread has
    the device and gives one back, too.
    """
    ours, device = resident(pipe)
    streams = [ours.stream(PROMPT, seed=1, num_inference_steps=4) for _ in range(5)]
    for stream in streams:
        next(stream)
    held, inside = threading.Event(), threading.Event()

    class Idle(list[Any]):
        def append(self, entry: Any) -> None:
            super().append(entry)
            if streams and not held.is_set():
                held.set()
                inside.wait(10)
                streams.pop().close()  # as the collector would
                streams.pop().close()

    ours._runners._idle = Idle()
    other, first = streams.pop(), streams.pop()

    def work() -> None:
        held.wait(10)
        with device.lock:
            inside.set()
            other.close()

    threads = [threading.Thread(target=work, daemon=True), threading.Thread(target=first.close, daemon=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    streams.pop().close()
    latents(ours)
    assert len(ours._runners._idle) <= IDLE_RUNNERS


@pytest.mark.parametrize("begun", [True, False])
def test_a_call_that_runs_while_engines_change_keeps_none_of_them(pipe: Pipeline, begun: bool) -> None:
    """An engine of the built kind takes another's place while a call runs; both in memory would be too much."""
    ours, device = resident(pipe)
    stream = ours.stream(PROMPT, seed=1, num_inference_steps=2)
    if begun:
        next(stream)
    former = weakref.ref(ours.engine("unet"))
    ours._change(lambda parts: parts.with_opened("onnx", "unet", parts.open_by("onnx", "unet")))
    for step in stream:
        assert not step.last or step.result().images
    del step, stream
    gc.collect()
    assert former() is None
    assert not device.memory
    latents(ours)
    assert device.memory


def test_providers_without_streams_get_host_arrays(pipe: Pipeline) -> None:
    device = CountingDevice()
    ours = Pipeline(pipe.bundle, EngineOptions(providers=["CPUExecutionProvider"]), device)
    assert not hasattr(ours.engine("unet"), "enqueue")
    np.testing.assert_array_equal(latents(ours), latents(pipe))
    assert device.calls["upload"] == 0


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_without_a_gpu_loading_says_so(device: str) -> None:
    if has_driver():
        pytest.skip("a GPU is here")
    with pytest.raises(EngineError, match="no NVIDIA driver"):
        edgediff.load(device=device)


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:x", "cuda:-1", "CUDA", None, 0])
def test_unknown_devices(device: Any) -> None:
    with pytest.raises(ArgumentError, match=r"no device .*; choose from cpu, cuda, cuda:N"):
        edgediff.load(device=device)


@pytest.mark.parametrize("providers", ["CPUExecutionProvider", [], [3], [("A",)], [("A", "b")]])
def test_bad_providers(providers: Any) -> None:
    with pytest.raises(ArgumentError, match="provider"):
        edgediff.load(providers=providers)


def test_providers_are_passed_through() -> None:
    with pytest.raises(EngineError, match=r"has no MagicExecutionProvider; choose from .*CPUExecutionProvider"):
        edgediff.load(providers=["MagicExecutionProvider"]).warm()
    with pytest.raises(EngineError, match="install onnxruntime-gpu in place of onnxruntime"):
        edgediff.load(providers=[("CUDAExecutionProvider", {"device_id": "0"})]).warm()
    pipe = edgediff.load(providers=["CPUExecutionProvider"])
    np.testing.assert_array_equal(latents(pipe), latents(edgediff.load()))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, family_bundle: Any) -> None:
    """Two text encoders, sizes, guidance as an input, further channels, models of pixels."""
    pipe = edgediff.load(family_bundle(family), threads=1)
    arguments: dict[str, Any] = {"sampler": "euler_a"}
    if not pipe.bundle.text:
        arguments["prompt"] = ""
    if pipe.bundle.inpaints:
        rng = np.random.default_rng(0)
        arguments["image"] = rng.integers(0, 256, (64, 64, 3), np.uint8)
        arguments["mask_image"] = rng.integers(0, 256, (64, 64), np.uint8)
    ours, device = resident(pipe)
    np.testing.assert_array_equal(latents(ours, **arguments), latents(pipe, **arguments))
    assert (device.calls["upload"] > 0) == (pipe.bundle.clip_sample is None)
    made, host = (
        p(**({"prompt": PROMPT, "seed": 1, "num_inference_steps": 2, "output_type": "np"} | arguments))
        for p in (ours, pipe)
    )
    np.testing.assert_array_equal(made.images, host.images)


class Tight(CountingDevice):
    """Room for one runner."""

    def allocate(self, size: int) -> int:
        if sum(block.nbytes for block in self.memory.values()) + size > 200_000:
            raise EngineError("out of memory")
        return super().allocate(size)


def test_idle_runners_make_room_for_another(pipe: Pipeline) -> None:
    device = Tight()
    ours = Pipeline(pipe.bundle, device=device)
    for size in (64, 128, 64):
        np.testing.assert_array_equal(latents(ours, height=size), latents(pipe, height=size))
    running = ours.stream(PROMPT, seed=0, num_inference_steps=2)
    next(running)
    with pytest.raises(EngineError, match="out of memory"):
        latents(ours, height=128)


def test_a_closed_pipeline(pipe: Pipeline) -> None:
    ours, device = resident(pipe)
    with ours:
        latents(ours)
        assert device.memory
    assert not device.memory
    ours.close()
    with pytest.raises(ArgumentError, match="this pipeline is closed"):
        latents(ours)


def test_a_stream_ends_with_its_pipeline(pipe: Pipeline) -> None:
    """A program that closes a pipeline while a stream runs gets a typed error at the next step, and no other picture's
    memory.
    """
    ours, _ = resident(pipe)
    stream = ours.stream(PROMPT, seed=3, num_inference_steps=4)
    next(stream)
    ours.close()
    with pytest.raises(EngineError, match="the device is closed"):
        next(stream)
    with pytest.raises(ArgumentError, match="this pipeline is closed"):
        ours.stream(PROMPT)


def test_latents_that_are_odd_on_the_way_down(tiny_bundle: Path) -> None:
    """52 pixels are 13 cells, 44 are 11; the U-Net halves them to 7 and 6."""
    plain = edgediff.load(tiny_bundle, threads=1)
    ours, _ = resident(plain)
    size = {"height": 52, "width": 44, "guidance_scale": 5.0}
    np.testing.assert_array_equal(latents(ours, **size), latents(plain, **size))
