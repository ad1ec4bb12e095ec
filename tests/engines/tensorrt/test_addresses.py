"""Every address given to TensorRT is a multiple of what it asks: 256 for tensors, 512 for scratch memory.

The U-Net has SDXL's further conditions, whose halves are of odd sizes; the device aligns its blocks to 256 bytes and
never to more.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgediff.bundle.manifest import Bundle, Part, Tensor
from edgediff.bundle.reading import read_bundle
from edgediff.device.array import DeviceArray
from edgediff.engines.tensorrt import installed
from edgediff.engines.tensorrt.engine_file import BuiltEngine
from edgediff.engines.tensorrt.scratch import Scratch
from edgediff.errors import EngineError
from edgediff.generation.conditioning import Condition, Group, grouped
from edgediff.generation.device_runner import DeviceRunner
from edgediff.sampling import loop
from edgediff.sampling.planning import Plan, plan
from edgediff.sampling.rng import TorchCpuGenerator
from edgediff.sampling.schedule import Schedule

from ...support.host_device import CountingDevice, OddDevice

pytest.importorskip("edgediff_kernels", reason="edgediff-kernels is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra test)")

TOKENS, WIDTH, POOLED, IDS = 5, 12, 20, 6
WIDTHS = {"encoder_hidden_states": (TOKENS, WIDTH), "text_embeds": (POOLED,), "time_ids": (IDS,)}
SIZE, STEPS = (4, 6, 10), 4


def write_graph(path: Path) -> Path:
    """out = sample * mean(texts) + mean(pooled) * mean(time_ids) + timestep / 1000, of each image's own."""
    from onnx import TensorProto, helper

    shapes = {"sample": ("n", *SIZE), "timestep": ("n",)} | {name: ("n", *own) for name, own in WIDTHS.items()}
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    constants = [
        helper.make_tensor("column", TensorProto.INT64, [4], [-1, 1, 1, 1]),
        helper.make_tensor("thousand", TensorProto.FLOAT, [], [1000.0]),
    ]
    nodes = []
    for name, axes in (("encoder_hidden_states", [1, 2]), ("text_embeds", [1]), ("time_ids", [1])):
        nodes += [
            helper.make_node("ReduceMean", [name], [f"{name}.mean"], axes=axes, keepdims=0),
            helper.make_node("Reshape", [f"{name}.mean", "column"], [f"{name}.column"]),
        ]
    nodes += [
        helper.make_node("Reshape", ["timestep", "column"], ["timestep.column"]),
        helper.make_node("Div", ["timestep.column", "thousand"], ["when"]),
        helper.make_node("Mul", ["sample", "encoder_hidden_states.column"], ["scaled"]),
        helper.make_node("Mul", ["text_embeds.column", "time_ids.column"], ["shift"]),
        helper.make_node("Add", ["scaled", "shift"], ["moved"]),
        helper.make_node("Add", ["moved", "when"], ["out_sample"]),
    ]
    output = helper.make_tensor_value_info("out_sample", TensorProto.FLOAT, ("n", *SIZE))
    graph = helper.make_graph(nodes, "unet", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


class Recorded:
    """An engine that notes the address of everything it is given; in all else the engine itself."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.given: list[tuple[str, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def enqueue(self, inputs: dict[str, DeviceArray], outputs: dict[str, DeviceArray], stream: int) -> None:
        self.given += [(name, array.address) for name, array in (*inputs.items(), *outputs.items())]
        self.engine.enqueue(inputs, outputs, stream)


class Sdxl:
    """A toy U-Net with SDXL's conditions: its bundle, its engine by the stand-in, and what both were given."""

    def __init__(self, folder: Path, standin: Any, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from edgediff.engines.tensorrt.engine import TensorRTEngine

        self.graph = write_graph(folder / "unet.onnx")
        described = {"sample": ("batch", *SIZE), "timestep": ("batch",)}
        described |= {name: ("batch", *own) for name, own in WIDTHS.items()}
        inputs = tuple(Tensor(name, "float32", shape) for name, shape in described.items())
        outputs = (Tensor("out_sample", "float32", ("batch", *SIZE)),)
        self.part: Part = replace(read_bundle(bundle).parts["unet"], inputs=inputs, outputs=outputs)
        whole = read_bundle(bundle)
        self.bundle: Bundle = replace(whole, parts={**whole.parts, "unet": self.part})
        profile = {t.name: tuple((n, *t.shape[1:]) for n in (1, 2, 8)) for t in inputs}
        facts: dict[str, Any] = {"graph": str(self.graph), "profile": profile, "flags": []}
        path = folder / "unet.engine"
        path.write_bytes(standin.MAGIC + json.dumps(facts).encode())
        platform = installed.building_platform(0)
        built = BuiltEngine("unet", "", (), platform, profile, path=path)  # type: ignore[arg-type]
        self.device, self.scratch = OddDevice(), Scratch()
        self.engine = Recorded(TensorRTEngine("unet", self.part, built, self.device, self.scratch))
        self.scratches: list[int] = []
        kept = standin.Context.set_device_memory

        def noted(context: Any, memory: int, size: int) -> None:
            self.scratches.append(memory)
            kept(context, memory, size)

        monkeypatch.setattr(standin.Context, "set_device_memory", noted)

    def runner(self, images: int) -> DeviceRunner:
        return DeviceRunner(self.device, self.bundle, self.engine, (images, *SIZE), 16, 4)

    def by_the_host(self, table: Plan, guided: Group, x: np.ndarray) -> np.ndarray:
        """The last state by the same graph, the host loop and ONNX Runtime on arrays."""
        import onnxruntime

        session = onnxruntime.InferenceSession(str(self.graph), providers=["CPUExecutionProvider"])

        def denoise(x: Any, t: float, both: bool) -> Any:
            sample = np.concatenate([x, x]) if both else x
            inputs = {name: v[-len(sample) :] for name, v in guided.inputs.items()}
            feeds = {"sample": sample, "timestep": np.full(len(sample), t, np.float32), **inputs}
            out = session.run(None, feeds)[0]
            return (out[: len(x)], out[len(x) :]) if both else (None, out)

        return list(loop.run(table, denoise, x, lambda: x))[-1].after


@pytest.fixture
def sdxl(tmp_path: Path, standin: Any, half_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Sdxl:
    return Sdxl(tmp_path, standin, half_bundle, monkeypatch)


def conditions(count: int) -> Group:
    rng = np.random.default_rng(0)

    def draw(name: str) -> Any:
        return rng.uniform(0.2, 0.9, WIDTHS[name]).astype(np.float32)

    return grouped([Condition(*(draw(name) for name in WIDTHS)) for _ in range(count)])[0]


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("guidance", [1.0, 4.0, [4.0, 1.0, 4.0, 1.0]], ids=str)
def test_every_address_is_aligned_and_holds_its_own(sdxl: Sdxl, images: int, guidance: Any) -> None:
    """Twice: the second run is replayed from graphs that the first captured."""
    both = conditions(2 * images)
    table = plan(Schedule(), "euler", STEPS, guidance)
    group = both if table.guided else Group(both.places[images:], {k: v[images:] for k, v in both.inputs.items()})
    x = np.random.default_rng(1).standard_normal((images, *SIZE), np.float32)
    wanted, runner = sdxl.by_the_host(table, both, x * np.float32(table.start)), sdxl.runner(images)
    for _ in range(2):
        streams = [TorchCpuGenerator(k) for k in range(images)]
        step = list(runner.run(table, streams, x, group, None))[-1]
        np.testing.assert_allclose(step.after, wanted, atol=1e-5)  # ONNX Runtime's means differ by alignment
    assert {name for name, _ in sdxl.engine.given} == {"sample", "timestep", "out_sample", *WIDTHS}
    assert [(name, address) for name, address in sdxl.engine.given if address % 256] == []
    assert sdxl.scratches
    assert [address for address in sdxl.scratches if address % 512] == []
    assert sdxl.device.calls["launch"]


def test_the_device_of_these_tests_aligns_nothing_by_luck() -> None:
    device = OddDevice()
    assert {device.allocate(size) % 512 for size in (1, 24, 512, 4096)} == {256}


def test_a_set_is_one_copy_and_keeps_its_place(sdxl: Sdxl) -> None:
    runner = sdxl.runner(2)
    table = plan(Schedule(), "euler", STEPS, 4.0)
    keys = set()
    for seed in range(3):
        before = sdxl.device.calls["upload"]
        runner._model.set(conditions(4).inputs)
        assert sdxl.device.calls["upload"] - before == 1
        list(runner.run(table, [TorchCpuGenerator(seed)] * 2, None, conditions(4), None))
        keys.add(runner._model.key)
    assert len(keys) == 1
    captures = sdxl.device.calls["capture"]
    list(runner.run(table, [TorchCpuGenerator(9)] * 2, None, conditions(4), None))
    assert sdxl.device.calls["capture"] == captures
    longer = {name: np.concatenate([v, v], 1) for name, v in conditions(4).inputs.items() if v.ndim == 3}
    runner._model.set(conditions(4).inputs | longer)
    assert runner._model.key not in keys
    blocks = len(sdxl.device.memory)
    runner.close()
    assert len(sdxl.device.memory) < blocks
    assert runner._model._places == {}


def arrays(sdxl: Sdxl, **moved: int) -> tuple[dict[str, DeviceArray], dict[str, DeviceArray]]:
    """A call's arrays, some of them moved by bytes."""
    inputs = {
        t.name: DeviceArray(sdxl.device.allocate(4096) + moved.get(t.name, 0), (1, *t.shape[1:]), t.dtype)  # type: ignore[arg-type]
        for t in sdxl.part.inputs
    }
    return inputs, {"out_sample": DeviceArray(sdxl.device.allocate(4096), (1, *SIZE), "float32")}


def test_an_address_that_is_not_aligned_is_refused(sdxl: Sdxl) -> None:
    inputs, outputs = arrays(sdxl, time_ids=24)
    address = inputs["time_ids"].address
    with pytest.raises(EngineError, match=f"unet: time_ids lies at {address:#x}; TensorRT takes addresses that are mu"):
        sdxl.engine.enqueue(inputs, outputs, 0)


def test_tensorrts_refusals_are_told(sdxl: Sdxl, standin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has TensorRT's own words, and none is gone past."""

    def refuse(answer: Any, words: str) -> Any:
        def method(context: Any, *args: Any) -> Any:
            context.engine.logger.log(standin.ILogger.Severity.ERROR, words)
            if isinstance(answer, Exception):
                raise answer
            return answer

        return method

    inputs, outputs = arrays(sdxl)
    for method, answer, message in (
        ("create_execution_context", None, "unet: TensorRT cannot make a context: so"),
        ("set_input_shape", False, r"unet: TensorRT refuses sample of shape \[1, 4, 6, 10\]: so"),
        ("update_device_memory_size_for_shapes", 0, "unet: TensorRT cannot tell how much scratch memory .*: so"),
        ("set_tensor_address", False, f"refuses {inputs['sample'].address:#x} as the address of sample: so"),
        ("set_device_memory", None, r"unet: TensorRT refuses \d+ bytes of scratch memory at 0x\w+: so"),
        ("execute_async_v3", False, "unet failed: so"),
    ):
        owner = standin.Engine if method == "create_execution_context" else standin.Context
        with monkeypatch.context() as patch:
            words = refuse(answer, "so")
            patch.setattr(owner, method, words if owner is standin.Context else lambda engine, strategy: None)
            if owner is standin.Engine:
                sdxl.engine._log.errors = []
                message = message.replace(": so", ": TensorRT does not say why")
            sdxl.engine._contexts.clear()
            with pytest.raises(EngineError, match=message):
                sdxl.engine.enqueue(inputs, outputs, 0)
    for answer in (False, RuntimeError("no such profile")):
        with monkeypatch.context() as patch:
            patch.setattr(standin.Context, "set_optimization_profile_async", refuse(answer, "so"))
            sdxl.engine._contexts.clear()  # the engine's first context has a profile; this one has none
            with pytest.raises(EngineError, match=r"unet: TensorRT cannot take profile 0.*: so"):
                sdxl.engine.enqueue(inputs, outputs, 0)
    sdxl.engine._contexts.clear()
    sdxl.engine.enqueue(inputs, outputs, 0)  # nothing of it stays


def test_what_was_said_before_is_no_refusal(sdxl: Sdxl, standin: Any) -> None:
    sdxl.engine._log.log(standin.ILogger.Severity.ERROR, "of something else")
    sdxl.engine.enqueue(*arrays(sdxl), 0)


def test_an_output_without_a_size_is_an_error(sdxl: Sdxl, standin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standin.Context, "get_tensor_shape", lambda context, name: standin.Dims((1, 4, -1, -1)))
    values = {t.name: np.zeros((1, *t.shape[1:]), np.float32) for t in sdxl.part.inputs}
    with pytest.raises(EngineError, match=r"the engine gives out_sample of shape \[1, 4, -1, -1\]"):
        sdxl.engine.engine(**values)


def test_a_runtime_that_cannot_start(
    tmp_path: Path, standin: Any, half_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def null(log: Any) -> Any:
        log.log(standin.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(standin, "Runtime", null)
    with pytest.raises(EngineError, match=r"unet: TensorRT 10\.13\.3\.9 cannot start: CUDA initialization failure"):
        Sdxl(tmp_path, standin, half_bundle, monkeypatch)


class Freed(OddDevice):
    """A device that notes what is done with memory, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.did: list[str] = []

    def allocate(self, size: int) -> int:
        self.did.append("allocate")
        return super().allocate(size)

    def free(self, address: int) -> None:
        self.did.append("free")
        super().free(address)

    def trim(self) -> None:
        self.did.append("trim")
        super().trim()


def test_scratch_memory_lets_go_before_it_grows() -> None:
    device, scratch = Freed(), Scratch()
    assert scratch.reserve(device, 0) == 0
    assert device.did == []
    first = scratch.reserve(device, 1000)
    assert first % 512 == 0
    assert scratch.reserve(device, 10) == first
    block = next(iter(device.memory))
    assert first + 1000 <= block + device.memory[block].nbytes - 256
    grown = scratch.reserve(device, 100_000)
    assert grown % 512 == 0
    assert device.did == ["allocate", "free", "trim", "allocate"]
    assert len(device.memory) == 1


def test_no_graph_holds_memory_that_scratch_let_go(sdxl: Sdxl) -> None:
    """Another part's larger shapes move the block; the graphs over the old one are not launched again."""
    runner, table, group = sdxl.runner(1), plan(Schedule(), "euler", STEPS, 4.0), conditions(2)
    x = np.random.default_rng(1).standard_normal((1, *SIZE), np.float32)
    first = list(runner.run(table, [TorchCpuGenerator(0)], x, group, None))[-1].after
    captures, key = sdxl.device.calls["capture"], runner._model.key
    sdxl.scratch.reserve(sdxl.device, 1 << 20)
    assert runner._model.key != key
    again = list(runner.run(table, [TorchCpuGenerator(0)], x, group, None))[-1].after
    np.testing.assert_array_equal(again, first)
    assert sdxl.device.calls["capture"] == captures + 1


def test_a_pool_that_is_cleared_gives_memory_back_to_the_system(half_bundle: Path) -> None:
    from edgediff.engines.base import EngineOptions
    from edgediff.pipeline import Pipeline

    device = Freed()
    pipe = Pipeline(read_bundle(half_bundle), EngineOptions(), device)
    pipe("a cat", seed=0, num_inference_steps=2, output_type="latent")
    assert "trim" not in device.did
    assert pipe._runners.clear() == 1
    assert device.did[-2:] == ["free", "trim"]
    assert pipe._runners.clear() == 0
    assert device.did.count("trim") == 1


def test_trimming_is_refused_in_a_graph() -> None:
    device = CountingDevice()
    with pytest.raises(EngineError, match="waiting for the device: a captured graph cannot hold it"):
        device.launch(device.capture(device.trim))
    device.close()
    with pytest.raises(EngineError, match="the device is closed"):
        device.trim()
