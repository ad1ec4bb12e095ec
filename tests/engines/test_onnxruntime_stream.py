"""ONNX Runtime on a device's stream: kept bindings, its own graphs and ours; with the real engine on host memory."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import edgediff
from edgediff.device.array import DeviceArray
from edgediff.engines import own_graphs
from edgediff.engines.base import EngineOptions, Provider
from edgediff.engines.onnxruntime import BACKEND
from edgediff.engines.onnxruntime_stream import ASYNCHRONOUS, GRAPH, MAX_BINDINGS, OnnxRuntimeStreamEngine
from edgediff.engines.own_graphs import asks_for_graphs, why_no_graphs, without_graphs
from edgediff.engines.providers import CUDA
from edgediff.engines.session import import_onnxruntime
from edgediff.errors import ArgumentError, EngineError, EngineWarning
from edgediff.pipeline import Pipeline

from ..support.host_device import CountingDevice, view

GRAPHED: list[Provider] = [(CUDA, {"enable_cuda_graph": "1", "use_tf32": "0"})]


@pytest.fixture(scope="module")
def bundle() -> edgediff.Bundle:
    return edgediff.load().bundle


class Decoder:
    """The decoder on the host's device, with room for its tensors at several places."""

    def __init__(self, bundle: edgediff.Bundle) -> None:
        self.device = CountingDevice()
        engine: Any = BACKEND.open(bundle, "vae_decoder", EngineOptions(threads=1), self.device)
        self.engine: OnnxRuntimeStreamEngine = engine
        self.rng = np.random.default_rng(0)

    def place(self, size: int = 8) -> tuple[DeviceArray, DeviceArray]:
        z, out = (1, 16, size, size), (1, 3, 8 * size, 8 * size)
        return tuple(  # type: ignore[return-value]
            DeviceArray(self.device.allocate(DeviceArray(0, shape, "float32").nbytes), shape, "float32")
            for shape in (z, out)
        )

    def check(self, z: DeviceArray, out: DeviceArray) -> None:
        """A call with new values gives what a call on host arrays gives."""
        view(z)[:] = self.rng.standard_normal(z.shape)
        self.engine.enqueue({"latent_sample": z}, {"sample": out}, 0)
        np.testing.assert_array_equal(view(out), self.engine(latent_sample=view(z).copy())["sample"])


def test_a_call_is_bound_once_for_its_places_and_shapes(bundle: edgediff.Bundle, monkeypatch: Any) -> None:
    decoder = Decoder(bundle)
    made: list[Any] = []
    real = decoder.engine._session.io_binding
    monkeypatch.setattr(decoder.engine._session, "io_binding", lambda: made.append(1) or real())
    one, other, small = decoder.place(), decoder.place(), decoder.place(4)
    for _ in range(3):
        for z, out in (one, other, small, (one[0], other[1])):
            decoder.check(z, out)
    assert len(made) == 4
    for _ in range(MAX_BINDINGS + 3):
        decoder.check(*decoder.place(1))
    assert len(decoder.engine._bound) == MAX_BINDINGS
    decoder.check(*one)  # it went, and is made again
    assert len(made) == 4 + MAX_BINDINGS + 3 + 1


def test_a_call_that_fails_is_bound_anew(bundle: edgediff.Bundle) -> None:
    decoder = Decoder(bundle)
    z, out = decoder.place()
    wrong = DeviceArray(out.address, (1, 3, 8, 8), "float32")
    for _ in range(2):
        with pytest.raises(EngineError, match=r"^vae_decoder failed on latent_sample float32\[1, 16, 8, 8\]: "):
            decoder.engine.enqueue({"latent_sample": z}, {"sample": wrong}, 0)
        assert not decoder.engine._bound
    decoder.check(z, out)


def test_a_call_on_a_closed_device_is_not_run(bundle: edgediff.Bundle) -> None:
    """Its stream and memory are gone, and a bound call would use both."""
    decoder = Decoder(bundle)
    z, out = decoder.place()
    decoder.check(z, out)
    pixels = view(out)
    pixels[:] = 7
    decoder.device.close()
    with pytest.raises(EngineError, match=r"^vae_decoder failed on latent_sample .*: the device is closed$"):
        decoder.engine.enqueue({"latent_sample": z}, {"sample": out}, 0)
    assert (pixels == 7).all()
    with pytest.raises(EngineError, match=r"^vae_decoder: ONNX Runtime .* cannot open .*: the device is closed$"):
        BACKEND.open(bundle, "vae_decoder", EngineOptions(), decoder.device)


def test_its_key_changes_with_the_shapes_it_has_seen(bundle: edgediff.Bundle) -> None:
    decoder = Decoder(bundle)
    before = decoder.engine.key
    for _ in range(2):
        decoder.check(*decoder.place())
    assert decoder.engine.key == before  # so that the first call counts among those that warm up
    decoder.check(*decoder.place(4))
    assert decoder.engine.key != before
    now = decoder.engine.key
    decoder.engine(latent_sample=np.zeros((1, 16, 2, 2), np.float32))
    assert decoder.engine.key != now


def test_runs_do_not_wait_and_own_graphs_have_numbers(bundle: edgediff.Bundle) -> None:
    """ONNX Runtime captures a number once and never lets go of it: none may come again, and there is a limit."""
    decoder = Decoder(bundle)
    decoder.check(*decoder.place(1))
    ((_, options),) = decoder.engine._bound.values()
    assert options.get_run_config_entry(ASYNCHRONOUS) == "1"
    decoder = Decoder(bundle)
    decoder.engine._own_graphs = True  # as with the provider's option, which the CPU's does not have
    seen = []

    def call() -> None:
        decoder.check(*decoder.place(1))
        options = list(decoder.engine._bound.values())[-1][1]
        seen.append(options.get_run_config_entry(GRAPH))
        assert options.get_run_config_entry(ASYNCHRONOUS) == "1"

    call()
    z, out = decoder.place(1)
    with pytest.raises(EngineError):
        decoder.engine.enqueue({"latent_sample": z}, {"sample": DeviceArray(out.address, (1, 3, 1, 1), "float32")}, 0)
    for _ in range(MAX_BINDINGS - 2):
        call()
    with pytest.warns(EngineWarning, match="vae_decoder: ONNX Runtime holds 32 graphs and drops none"):
        call()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()
    assert seen == ["1", *map(str, range(3, MAX_BINDINGS + 1)), "-1", "-1"]


def test_own_graphs_are_for_the_unet_and_the_decoder(bundle: edgediff.Bundle) -> None:
    assert asks_for_graphs(GRAPHED)
    assert not any(map(asks_for_graphs, (None, [CUDA], [(CUDA, {"enable_cuda_graph": 0})], [])))
    assert without_graphs([*GRAPHED, "X"]) == [(CUDA, {"use_tf32": "0"}), "X"]
    assert without_graphs(None) is None
    if CUDA in import_onnxruntime().get_available_providers():
        pytest.skip("the messages are those of the CPU's ONNX Runtime")
    opened: dict[str, Any] = {}

    class Kept(OnnxRuntimeStreamEngine):
        def __init__(self, name: str, *args: Any) -> None:
            opened[name] = args[4]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgediff.engines.onnxruntime_stream.OnnxRuntimeStreamEngine", Kept)
        for part in ("text_encoder", "unet", "vae_decoder"):
            BACKEND.open(bundle, part, EngineOptions(providers=GRAPHED), CountingDevice())
    assert opened == {"text_encoder": [(CUDA, {"use_tf32": "0"})], "unet": GRAPHED, "vae_decoder": GRAPHED}


def test_own_graphs_that_would_wait_are_refused(bundle: edgediff.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [bool(why_no_graphs(v)) for v in ("1.18.1", "1.26.0", "1.27.0", "1.31.1", "1.100.0", "2.0", "head")] == [
        *(True, True, False, False, False, False, False)
    ]
    monkeypatch.setattr(own_graphs, "FIRST", (99, 0))  # so that the real ONNX Runtime is too old
    said = r"^unet: ONNX Runtime 1\..* waits for the device at every replay; enable_cuda_graph needs 99\.0 or newer$"
    with pytest.raises(EngineError, match=said):
        BACKEND.open(bundle, "unet", EngineOptions(providers=GRAPHED), CountingDevice())
    with pytest.raises(EngineError, match="enable_cuda_graph needs arrays that stay on a CUDA device"):
        BACKEND.open(bundle, "unet", EngineOptions(providers=GRAPHED), None)


def test_options_that_exclude_each_other() -> None:
    with pytest.raises(ArgumentError, match=r"enable_cuda_graph .* device is 'cpu', give device='cuda'"):
        edgediff.load(providers=GRAPHED)
    with pytest.raises(ArgumentError, match=r"^providers ask for enable_cuda_graph, and cuda_graphs is False"):
        edgediff.load(device="cuda", providers=GRAPHED, cuda_graphs=False)
    with pytest.raises(ArgumentError, match=r"^cuda_graphs is 1; it must be True or False$"):
        edgediff.load(cuda_graphs=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_pictures_by_graphs_of_the_real_engine(cuda_graphs: bool) -> None:
    """The whole way: three calls, two checks, then one graph a step, which later requests of that size launch."""
    pytest.importorskip("edgediff_kernels", reason="edgediff-kernels is not installed")
    pipe, device = edgediff.load(), CountingDevice()
    ours = Pipeline(pipe.bundle, EngineOptions(cuda_graphs=cuda_graphs), device)
    for seed, expected in ((3, 5), (4, 8)):
        call: dict[str, Any] = {"seed": seed, "num_inference_steps": 8, "guidance_scale": 5, "sampler": "dpmpp_2m"}
        device.calls.clear()
        made, host = (p("a red apple", output_type="latent", **call).latents for p in (ours, pipe))
        np.testing.assert_array_equal(made, host)
        assert device.calls["launch"] == (expected if cuda_graphs else 0)  # two in checks, and three or all steps
    if not cuda_graphs:
        assert device.calls["capture"] == 0
