"""The walk over the backends: a further backend takes part by its module's name in the tuple alone."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import edgediff
from edgediff.bundle.manifest import PLAIN, WEIGHTS, Bundle, File, Part
from edgediff.cli import main as cli
from edgediff.device.base import Device
from edgediff.device.host import HostDevice
from edgediff.engines import choose
from edgediff.engines.base import Backend, EngineOptions, check_device, first_file, refuses
from edgediff.engines.choose import Parts, check_engine, engine_words, survey, walk
from edgediff.errors import ArgumentError, EngineError
from edgediff.pipeline import Pipeline


class BrightDecoder:
    """A decoder in NumPy: three latent channels, enlarged, are red, green and blue."""

    def __init__(self, part: Part, factor: int) -> None:
        self.inputs, self.outputs, self._factor = part.inputs, part.outputs, factor
        self.calls = 0

    def __call__(self, **inputs: Any) -> dict[str, Any]:
        self.calls += 1
        rgb = np.tanh(inputs["latent_sample"][:, :3])
        return {"sample": rgb.repeat(self._factor, axis=2).repeat(self._factor, axis=3)}

    def refuses(self, shapes: Mapping[str, tuple[int, ...]]) -> str:
        width = shapes["latent_sample"][3]
        return "" if width <= 8 else f"latent_sample is {width} wide, and the engine takes 8"


@dataclass
class NumpyBackend:
    """A backend that runs the decoder, and no other part, on the CPU."""

    name: str = "NumPy"
    word: str = "numpy"
    devices: tuple[str, ...] = ("cpu",)
    runs: tuple[str, ...] = ("onnx",)
    opened: list[BrightDecoder] = field(default_factory=list)
    asked: int = 0

    def why_not(self, bundle: Bundle, part: str, options: EngineOptions, ordinal: int | None) -> tuple[str, ...]:
        return () if part == "vae_decoder" else ("decodes, and nothing else",)

    def describe(self, bundle: Bundle, part: str, options: EngineOptions, ordinal: int | None) -> str:
        return np.__version__

    def open(self, bundle: Bundle, part: str, options: EngineOptions, device: Device | None) -> BrightDecoder:
        self.asked += 1
        if reasons := self.why_not(bundle, part, options, None):
            raise EngineError(f"{part} cannot run by {self.name}: {'; '.join(reasons)}")
        self.opened.append(BrightDecoder(bundle.parts[part], bundle.latent.factor))
        return self.opened[-1]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> NumpyBackend:
    """The NumPy backend, tried first."""
    return registered(monkeypatch, NumpyBackend(), first=True)


def registered(monkeypatch: pytest.MonkeyPatch, backend: NumpyBackend, first: bool) -> NumpyBackend:
    """What adding a backend is: a module with a ``BACKEND``, and its name in the tuple."""
    module = ModuleType(f"edgediff.engines.{backend.word}_backend")
    checked: Backend = backend
    module.__dict__["BACKEND"] = checked
    monkeypatch.setitem(sys.modules, module.__name__, module)
    name = module.__name__.rpartition(".")[2]
    monkeypatch.setattr(choose, "BACKENDS", (name, *choose.BACKENDS) if first else (*choose.BACKENDS, name))
    return backend


CALL: dict[str, Any] = {"prompt": "a red apple", "seed": 7, "num_inference_steps": 2, "output_type": "np"}


def test_pictures_through_a_further_backend(backend: NumpyBackend) -> None:
    pipe = edgediff.load()
    result = pipe(**CALL)
    assert [engine.calls for engine in backend.opened] == [1]
    z = result.latents / np.float32(pipe.bundle.latent.scale) + np.float32(pipe.bundle.latent.shift)
    rgb = np.tanh(z[:, :3]).repeat(pipe.bundle.latent.factor, axis=2).repeat(pipe.bundle.latent.factor, axis=3)
    expected = np.clip(np.round((rgb.transpose(0, 2, 3, 1) + 1) * 127.5), 0, 255)
    np.testing.assert_allclose(result.images, expected, atol=1)
    assert type(pipe.engine("unet")).__name__ == "OnnxRuntimeEngine"
    np.testing.assert_array_equal(result.latents, edgediff.load(engine="onnx")(**CALL).latents)


def test_the_first_that_can_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = registered(monkeypatch, NumpyBackend(), first=False)
    edgediff.load()(**CALL)
    assert backend.asked == 0  # ONNX Runtime, before it, runs every part
    edgediff.load(engine="numpy").engine("vae_decoder")
    assert len(backend.opened) == 1


def test_one_that_failed_is_not_asked_at_every_call(backend: NumpyBackend) -> None:
    pipe = edgediff.load()
    for _ in range(3):
        pipe.engine("unet")
    assert backend.asked == 1


def test_one_that_failed_keeps_no_caller_alive(backend: NumpyBackend) -> None:
    """An error that is kept holds its frames, and these hold streams, which hold memory of a device."""

    class Stream:
        pass

    def call() -> weakref.ref[Stream]:
        stream = Stream()
        parts.pick("unet")
        return weakref.ref(stream)

    parts = Parts(edgediff.load().bundle)
    gc.disable()
    try:
        assert call()() is None
        assert backend.asked == 1
    finally:
        gc.enable()


def test_shapes_that_it_refuses_go_to_the_next(backend: NumpyBackend) -> None:
    pipe = edgediff.load()
    wide = pipe(**CALL, width=128)
    assert backend.opened[0].calls == 0
    np.testing.assert_array_equal(wide.images, edgediff.load(engine="onnx")(**CALL, width=128).images)
    assert type(pipe.engine("vae_decoder")) is BrightDecoder
    shapes = {"latent_sample": (1, 4, 8, 16)}
    assert pipe._open_parts().outside("vae_decoder", shapes) == "latent_sample is 16 wide, and the engine takes 8"
    with pytest.raises(EngineError, match=r"^vae_decoder cannot run by NumPy: latent_sample is 16 wide"):
        Parts(pipe.bundle, EngineOptions(engine="numpy")).pick("vae_decoder", shapes)


def test_it_is_selected_by_its_word(backend: NumpyBackend) -> None:
    pipe = edgediff.load(engine="numpy")
    assert type(pipe.engine("vae_decoder")) is BrightDecoder
    with pytest.raises(EngineError, match=r"^unet cannot run by NumPy: decodes, and nothing else$"):
        pipe.engine("unet")
    assert engine_words() == ("numpy", "onnx", "tensorrt", "auto")
    with pytest.raises(ArgumentError, match="no engine 'abacus'; choose from numpy, onnx, tensorrt, auto"):
        edgediff.load(engine="abacus")
    with pytest.raises(ArgumentError, match="engine 'numpy' needs device='cpu'; a GPU's are 'onnx', 'tensorrt'"):
        check_engine("numpy", 0)
    with pytest.raises(ArgumentError, match="engine 'tensorrt' needs device='cuda'; the CPU's are 'numpy', 'onnx'"):
        check_engine("tensorrt", None)


def test_every_reason_is_told_where_none_can(backend: NumpyBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    pipe = edgediff.load()
    with pytest.raises(EngineError) as caught:
        pipe.engine("unet")
    text = str(caught.value)
    assert text.startswith("unet cannot run here: unet.onnx: no engine is installed; install edgediff")
    assert text.endswith("; nor by NumPy: decodes, and nothing else")


def test_info_prints_the_walk(backend: NumpyBackend, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    decoder = lines[lines.index("engines    of vae_decoder") :]
    rows = [line.split()[:2] for line in decoder if line.startswith(("           cuda  ", "           cpu   "))]
    assert rows == [["cuda", "TensorRT"], ["cuda", "ONNX"], ["cpu", "NumPy"], ["cpu", "ONNX"]]
    assert f"           cpu   NumPy         yes  {np.__version__}" in decoder
    assert "decodes, and nothing else" in text
    row = next(line for line in lines if line.startswith("vae_decoder     vae_decoder.onnx"))
    assert row.endswith("runs on cpu by NumPy, ONNX Runtime")
    row = next(line for line in lines if line.startswith("unet            unet.onnx"))
    assert row.endswith("runs on cpu by ONNX Runtime")


def test_the_survey_is_the_walk(backend: NumpyBackend) -> None:
    bundle, options = edgediff.load().bundle, EngineOptions()
    found = survey(bundle, "vae_decoder", options)
    walked = [("cuda", b.name) for b in walk(options, 0)] + [("cpu", b.name) for b in walk(options, None)]
    assert [(each.device, each.engine) for each in found] == walked
    assert walked == [("cuda", "TensorRT"), ("cuda", "ONNX Runtime"), ("cpu", "NumPy"), ("cpu", "ONNX Runtime")]
    for each in found[2:]:
        opened = Parts(bundle, EngineOptions(engine={"NumPy": "numpy"}.get(each.engine, "onnx"))).pick("vae_decoder")
        assert not each.reasons
        assert opened.inputs == bundle.parts["vae_decoder"].inputs


@pytest.mark.parametrize(
    ("options", "ordinal", "words"),
    [
        ({}, None, ["onnx"]),
        ({}, 0, ["tensorrt", "onnx"]),
        ({"engine": "auto"}, 0, ["tensorrt", "onnx"]),
        ({"engine": "onnx"}, 0, ["onnx"]),
        ({"engine": "tensorrt"}, 0, ["tensorrt"]),
        ({"engine": "tensorrt"}, None, []),
        ({"providers": ["CPUExecutionProvider"]}, 0, ["onnx"]),
    ],
    ids=str,
)
def test_walks(options: dict[str, Any], ordinal: int | None, words: list[str]) -> None:
    assert [backend.word for backend in walk(EngineOptions(**options), ordinal)] == words


def test_no_backend_takes_the_device() -> None:
    parts = Parts(edgediff.load().bundle, EngineOptions(engine="tensorrt"))
    with pytest.raises(EngineError, match="unet cannot run here: no backend takes this device with these options"):
        parts.pick("unet")
    assert parts.outside("unet", {"sample": (1, 4, 8, 8)}) == ""


def test_an_engine_that_was_set_runs_whatever_the_shapes(backend: NumpyBackend) -> None:
    bundle = edgediff.load().bundle
    parts, ours = Parts(bundle), BrightDecoder(bundle.parts["vae_decoder"], 8)
    changed = parts.with_engine("vae_decoder", ours)
    shapes = {"latent_sample": (1, 4, 8, 64)}
    assert changed.pick("vae_decoder", shapes) is ours
    assert changed.outside("vae_decoder", shapes) == ""
    assert parts.pick("vae_decoder") is not ours


def test_an_engine_that_was_opened_anew_serves_from_then_on(backend: NumpyBackend) -> None:
    parts = Parts(edgediff.load().bundle)
    first, unet = parts.pick("vae_decoder"), parts.pick("unet")
    again = parts.open_by("numpy", "vae_decoder")
    changed = parts.with_opened("numpy", "vae_decoder", again)
    assert changed.pick("vae_decoder") is again
    assert changed.pick("unet") is unet
    assert parts.pick("vae_decoder") is first  # requests that run keep theirs


def test_a_device_passes_over_what_runs_on_the_cpu_alone(backend: NumpyBackend) -> None:
    pipe = Pipeline(edgediff.load().bundle, device=HostDevice())
    assert type(pipe.engine("vae_decoder")).__name__ == "OnnxRuntimeStreamEngine"
    assert backend.asked == 0


def file(engine: str, path: str) -> File:
    return File(engine, "fp32", path, 1, "00" * 32)


def test_files_are_taken_in_the_manifests_order() -> None:
    part = Part(
        (file(PLAIN, "p"), file("abacus", "a"), file("onnx", "o"), file(WEIGHTS, "w"), file("onnx", "z")), (), ()
    )
    chosen, reasons = first_file(part, ("onnx",))
    assert chosen == part.files[2]
    assert reasons == [
        "p: a graph for building TensorRT engines, which fuse attention by themselves",
        "a: no backend for engine 'abacus'",
    ]
    assert first_file(part, (PLAIN, "onnx"))[0] == part.files[0]
    chosen, reasons = first_file(part, ("onnx",), missing="not installed")
    assert chosen is None
    assert reasons[2:] == ["o: not installed", "w: holds weights of the file before it", "z: not installed"]


def test_an_engine_without_the_method_refuses_nothing() -> None:
    engine: Any = object()
    assert refuses(engine, {"sample": (1,)}) == ""


def test_devices() -> None:
    assert [check_device(device) for device in ("cpu", "cuda", "cuda:0", "cuda:12")] == [None, 0, 0, 12]
