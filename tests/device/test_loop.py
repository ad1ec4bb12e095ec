"""The device loop, run whole on the CPU twin: the same states as the host loop, and as few calls as promised."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from edgediff.device.array import DeviceArray
from edgediff.device.loop import DeviceLoop
from edgediff.device.pictures import DevicePictures
from edgediff.errors import ArgumentError, EngineError
from edgediff.image import to_uint8
from edgediff.sampling.loop import run
from edgediff.sampling.planning import Plan, plan
from edgediff.sampling.rng import TorchCpuGenerator, TorchCudaGenerator
from edgediff.sampling.samplers import SAMPLERS
from edgediff.sampling.schedule import Schedule

from ..support.host_device import CountingDevice, narrowed, view, widened

kernels = pytest.importorskip("edgediff_kernels", reason="edgediff-kernels is not installed")

SCHEDULE = Schedule()
SHAPE = (2, 4, 6, 5)
GUIDANCES = {
    "off": {"guidance_scale": 1.0},
    "on": {"guidance_scale": 7.5},
    "interval": {"guidance_scale": 4.0, "guidance_interval": (0.25, 0.75)},
}


def net(sample: np.ndarray, t: float, half: int) -> np.ndarray:
    """Nonlinear, and other values for the unconditional half."""
    return np.tanh(0.4 * sample + (0.001 * t + 0.2 * float(half)))


class Net:
    """The model on the host's memory; as a GPU's, it knows nothing but its buffers."""

    capture, warm_runs, key = "always", 1, 0

    def __init__(self, channels: int = SHAPE[1], broken_at: int | None = None, factor: float = 1.0) -> None:
        self.calls, self.channels, self.broken_at, self.factor = 0, channels, broken_at, factor
        self.batches: list[int] = []

    def enqueue(self, sample: DeviceArray, timestep: DeviceArray, output: DeviceArray, stream: int) -> None:
        x, t = widened(view(sample)), view(timestep)
        times = widened(t)
        assert (times == times[0]).all()
        half = np.arange(len(x)) * 2 // len(x) if len(x) > SHAPE[0] else np.ones(len(x))
        out = np.stack([net(v[: self.channels], float(times[0]), h) for v, h in zip(x, half, strict=True)])
        out = out * np.float32(self.factor)
        if self.calls == self.broken_at:
            out[0, 0, 0, 0] = np.nan
        view(output)[:] = narrowed(out, output.dtype)
        self.batches.append(len(x))
        self.calls += 1


def on_host(table: Plan, streams: list[Any], x: np.ndarray | None = None, sample="float32", output="float32"):
    """The host loop's steps with the same model."""

    def noise() -> np.ndarray:
        return np.concatenate([s.randn((1, *SHAPE[1:])) for s in streams])

    def call(x: np.ndarray, t: float, half: int) -> np.ndarray:
        return widened(narrowed(net(widened(narrowed(x, sample)), t, half), output))

    def denoise(x: np.ndarray, t: float, guided: bool):
        t = float(np.float32(t))  # as the model is told
        return call(x, t, 0) if guided else None, call(x, t, 1)

    x = noise() if x is None else x
    return list(run(table, denoise, x * np.float32(table.start), noise))


def generators(kind: type = TorchCpuGenerator) -> list[Any]:
    return [kind(seed) for seed in (5, 77)]


@pytest.mark.parametrize("emulated", [0, 1, 132], ids=["plain", "tiny-gpu", "large-gpu"])
@pytest.mark.parametrize("guidance", GUIDANCES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_state_has_the_host_loops_bits(sampler: str, guidance: str, emulated: int) -> None:
    table = plan(SCHEDULE, sampler, 8, **GUIDANCES[guidance])
    loop = DeviceLoop(CountingDevice(), Net(), SHAPE, emulated=emulated)
    steps = on_host(table, generators())
    for step, host in zip(loop.run(table, generators()), steps, strict=True):
        np.testing.assert_array_equal(step.after, host.after)
        np.testing.assert_array_equal(step.x0(), host.x0())
        assert step.row is host.row


@pytest.mark.parametrize("guidance", GUIDANCES)
@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if plan(SCHEDULE, name, 5).stochastic] + ["ddim"])
def test_noise_drawn_on_the_device(sampler: str, guidance: str) -> None:
    table = plan(SCHEDULE, sampler, 8, **GUIDANCES[guidance])
    device = CountingDevice()
    loop = DeviceLoop(device, Net(), SHAPE)
    host = on_host(table, generators(TorchCudaGenerator))[-1].after
    uploads = device.calls["upload"]
    *_, last = loop.run(table, generators(TorchCudaGenerator))
    np.testing.assert_allclose(last.after, host, rtol=0, atol=1e-5 * np.abs(host).max())
    assert device.calls["upload"] - uploads == 3  # seeds, rows and header: no noise, no state


def test_draws_made_before_are_not_repeated() -> None:
    """Inpainting draws between the first state and the steps; a GPU smaller than the latent needs several rounds."""
    table = plan(SCHEDULE, "euler_a", 5, 3.0)
    small = [TorchCudaGenerator(seed, 1, 256) for seed in (5, 77)]
    same = [TorchCudaGenerator(seed, 1, 256) for seed in (5, 77)]
    x = np.concatenate([s.randn((1, *SHAPE[1:])) for s in small])
    for s in same:
        s.randn((1, *SHAPE[1:]))
    for s in (*small, *same):
        s.randn((1, *SHAPE[1:]))
    host = on_host(table, small, x)[-1].after
    *_, last = DeviceLoop(CountingDevice(), Net(), SHAPE).run(table, same, x)
    np.testing.assert_allclose(last.after, host, rtol=0, atol=1e-5 * np.abs(host).max())


def test_the_first_state_goes_on_where_the_generators_are() -> None:
    table = plan(SCHEDULE, "euler_a", 5, 3.0)
    one, other = generators(TorchCudaGenerator), generators(TorchCudaGenerator)
    for s in (*one, *other):
        s.randn((1, *SHAPE[1:]))
    *_, last = DeviceLoop(CountingDevice(), Net(), SHAPE).run(table, one)
    host = on_host(table, other)[-1].after
    np.testing.assert_allclose(last.after, host, rtol=0, atol=1e-5 * np.abs(host).max())


@pytest.mark.parametrize("kind", [TorchCpuGenerator, TorchCudaGenerator])
def test_a_run_moves_the_generators_on(kind: type) -> None:
    table = plan(SCHEDULE, "dpmpp_sde", 4, 3.0)
    one, other = generators(kind), generators(kind)
    loop = DeviceLoop(CountingDevice(), Net(), SHAPE)
    for _ in range(2):
        *_, last = loop.run(table, one)
        host = on_host(table, other)[-1].after
        np.testing.assert_allclose(last.after, host, rtol=0, atol=1e-5 * np.abs(host).max())


def test_generators_at_another_place_are_drawn_on_the_host() -> None:
    table = plan(SCHEDULE, "euler_a", 5, 3.0)
    odd = [TorchCudaGenerator(5), TorchCudaGenerator(77)]
    same = [TorchCudaGenerator(5), TorchCudaGenerator(77)]
    odd[0].randn((1, *SHAPE[1:]))  # one of them is ahead of the other
    same[0].randn((1, *SHAPE[1:]))
    *_, last = DeviceLoop(CountingDevice(), Net(), SHAPE).run(table, odd)
    np.testing.assert_array_equal(last.after, on_host(table, same)[-1].after)


@pytest.mark.parametrize("emulated", [0, 132])
@pytest.mark.parametrize("timestep", ["float32", "float16", "int64"])
@pytest.mark.parametrize("sample", ["float32", "float16"])
@pytest.mark.parametrize("output", ["float32", "float16"])
def test_model_types(sample: str, output: str, timestep: str, emulated: int) -> None:
    table = plan(SCHEDULE, "dpmpp_2m", 4, 7.5, timesteps=[960, 640, 256, 64])  # whole in every type
    types = {"sample_type": sample, "output_type": output, "timestep_type": timestep}
    loop = DeviceLoop(CountingDevice(), Net(), SHAPE, **types, emulated=emulated)
    *_, last = loop.run(table, generators())
    np.testing.assert_array_equal(last.after, on_host(table, generators(), sample=sample, output=output)[-1].after)


def test_further_channels_are_left_alone() -> None:
    table = plan(SCHEDULE, "euler", 5, 7.5)
    loop = DeviceLoop(CountingDevice(), Net(), SHAPE, channels=9)
    further = np.random.default_rng(0).standard_normal((4, 5, *SHAPE[2:]), np.float32)
    view(loop.sample)[:, 4:] = further
    *_, last = loop.run(table, generators())
    after = last.after
    np.testing.assert_array_equal(view(loop.sample)[:, 4:], further)
    np.testing.assert_array_equal(view(loop.sample)[:, :4], np.concatenate([after, after]))
    np.testing.assert_array_equal(after, on_host(table, generators())[-1].after)


@pytest.mark.parametrize("shape", [(1, 4, 64, 64), (1, 1, 1, 1), (3, 4, 33, 17), (70, 3, 8, 8)])
def test_wide_and_odd_shapes_through_the_grid(shape: tuple[int, ...]) -> None:
    """Packs of four, several images a block row, strides and ends."""
    table = plan(SCHEDULE, "unipc", 4, 1.0)
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    streams = [TorchCpuGenerator(0)] * shape[0]
    results = []
    for emulated in (0, 1, 132):
        loop = DeviceLoop(CountingDevice(), Net(shape[1]), shape, emulated=emulated)
        *_, last = loop.run(table, streams, x)
        results.append(last.after)
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])
    assert np.isfinite(results[0]).all()
    assert np.abs(results[0]).max() > 0


def test_one_capture_then_launches_alone() -> None:
    table = plan(SCHEDULE, "dpmpp_2m", 20, 7.5)
    device, model = CountingDevice(), Net()
    loop = DeviceLoop(device, model, SHAPE)
    first = list(loop.run(table, generators()))
    assert device.calls == {"upload": 3, "capture": 1, "launch": 19}  # x, rows, header; one call warms up
    assert model.calls == 20
    state = first[-1].after
    assert device.calls["download"] == 2  # the values, and whether they are finite
    device.calls.clear()
    *_, last = loop.run(table, generators())
    assert device.calls == {"upload": 2, "launch": 20}  # the rows are there
    np.testing.assert_array_equal(last.after, state)


def test_another_plan_needs_no_capture() -> None:
    device = CountingDevice()
    loop = DeviceLoop(device, Net(), SHAPE)
    list(loop.run(plan(SCHEDULE, "dpmpp_2m", 20, 7.5), generators()))
    for sampler, steps in (("lms", 9), ("euler_a", 30), ("heun", 5), ("ddim", 1)):
        table = plan(SCHEDULE, sampler, steps, 3.0)
        device.calls.clear()
        *_, last = loop.run(table, generators())
        assert device.calls["capture"] == 0
        np.testing.assert_array_equal(last.after, on_host(table, generators())[-1].after)


def test_an_interval_saves_the_unconditional_half_and_has_two_graphs() -> None:
    table = plan(SCHEDULE, "euler", 8, **GUIDANCES["interval"])
    device, model = CountingDevice(), Net()
    list(DeviceLoop(device, model, SHAPE).run(table, generators()))
    assert model.batches == [2, 2, 4, 4, 4, 4, 2, 2]
    assert device.calls["capture"] == 2


def test_a_model_with_other_inputs_is_captured_again() -> None:
    table = plan(SCHEDULE, "euler", 4, 7.5)
    device, model = CountingDevice(), Net()
    loop = DeviceLoop(device, model, SHAPE)
    list(loop.run(table, generators()))
    model.key = 154
    list(loop.run(table, generators()))
    model.key = 0
    list(loop.run(table, generators()))
    assert device.calls["capture"] == 2


def test_models_that_capture_themselves_are_called() -> None:
    table = plan(SCHEDULE, "euler", 4, 7.5)
    device, model = CountingDevice(), Net()
    model.capture = "never"
    *_, last = DeviceLoop(device, model, SHAPE).run(table, generators())
    assert device.calls["capture"] == device.calls["launch"] == 0
    assert model.calls == 4
    np.testing.assert_array_equal(last.after, on_host(table, generators())[-1].after)


def test_the_host_stays_close_when_asked() -> None:
    table = plan(SCHEDULE, "euler", 10, 7.5)
    device = CountingDevice()
    loop = DeviceLoop(device, Net(), SHAPE)
    list(loop.run(table, generators(), ahead=2))
    assert device.calls["mark"] == 10
    assert device.calls["wait"] == 8
    device.calls.clear()
    list(loop.run(table, generators()))
    assert device.calls["mark"] == device.calls["wait"] == device.calls["download"] == 0


def test_cancelling_leaves_the_loop_usable() -> None:
    table = plan(SCHEDULE, "dpmpp_3m_sde", 8, 7.5)
    model = Net()
    loop = DeviceLoop(CountingDevice(), model, SHAPE)
    for step in loop.run(table, generators()):
        if step.index == 3:
            break
    assert model.calls == 4
    *_, last = loop.run(table, generators())
    np.testing.assert_array_equal(last.after, on_host(table, generators())[-1].after)


def test_values_of_earlier_steps_are_gone() -> None:
    table = plan(SCHEDULE, "euler", 4, 7.5)
    loop = DeviceLoop(CountingDevice(), Net(), SHAPE)
    steps = loop.run(table, generators())
    first = next(steps)
    first.after  # noqa: B018
    next(steps)
    with pytest.raises(ArgumentError, match="gone on"):
        first.after  # noqa: B018
    with pytest.raises(ArgumentError, match="gone on"):
        first.x0()


def test_two_runs_at_a_time_are_refused() -> None:
    table = plan(SCHEDULE, "euler", 4, 7.5)
    loop = DeviceLoop(CountingDevice(), Net(), SHAPE)
    one = loop.run(table, generators())
    next(one)
    two = loop.run(table, generators())
    with pytest.raises(ArgumentError, match="another run"):
        next(one)
    *_, last = two
    np.testing.assert_array_equal(last.after, on_host(table, generators())[-1].after)


@pytest.mark.parametrize("emulated", [0, 132])
def test_values_that_are_not_finite_name_the_part_and_the_step(emulated: int) -> None:
    table = plan(SCHEDULE, "dpmpp_2m", 8, 7.5)
    loop = DeviceLoop(CountingDevice(), Net(broken_at=4), SHAPE, emulated=emulated)
    *_, last = loop.run(table, generators())
    with pytest.raises(EngineError, match="unet, step 5, gave values that are not finite"):
        last.after  # noqa: B018
    *_, last = loop.run(table, generators())  # the next run starts clean
    assert np.isfinite(last.after).all()
    table = plan(SCHEDULE, "euler", 8, 900.0)
    loop = DeviceLoop(CountingDevice(), Net(factor=1e36), SHAPE, emulated=emulated)
    *_, last = loop.run(table, generators())
    with pytest.raises(EngineError, match="sampler euler, step 1, gave"):
        loop.update.check()


def test_a_counter_beyond_the_rows_changes_nothing() -> None:
    table = plan(SCHEDULE, "euler", 3, 7.5)
    for emulated in (0, 132):
        loop = DeviceLoop(CountingDevice(), Net(), SHAPE, emulated=emulated)
        *_, last = loop.run(table, generators())
        before = last.after
        for _ in range(3):
            loop.update.step()
        np.testing.assert_array_equal(view(loop.update.state), before)


def test_previews_can_be_left_out() -> None:
    loop = DeviceLoop(CountingDevice(), Net(), SHAPE, previews=False)
    *_, last = loop.run(plan(SCHEDULE, "euler", 3, 7.5), generators())
    with pytest.raises(ArgumentError, match="previews"):
        last.x0()
    assert np.isfinite(last.after).all()


def test_memory_is_given_back() -> None:
    device = CountingDevice()
    loop = DeviceLoop(device, Net(), SHAPE)
    pictures = DevicePictures(loop, Decode(), 8, scale=1.0)
    for steps in (3, 9, 5):  # noise from the host needs more room, then less
        list(loop.run(plan(SCHEDULE, "euler_a", steps, 7.5), generators()))
    pictures.draw()
    blocks = len(device.memory)
    list(loop.run(plan(SCHEDULE, "euler_a", 9, 7.5), generators()))
    assert len(device.memory) == blocks
    loop.close()
    assert not device.memory


class Small(CountingDevice):
    """Room for ``room`` bytes."""

    room = 0

    def allocate(self, size: int) -> int:
        if sum(len(block) for block in self.memory.values()) + size > self.room:
            raise EngineError("out of memory")
        return super().allocate(size)


def test_a_loop_that_finds_no_memory_leaves_none_taken() -> None:
    device = Small()
    for device.room in range(0, 20_000, 500):
        try:
            DeviceLoop(device, Net(), SHAPE).close()
        except EngineError:
            pass
        else:
            break
        assert not device.memory
    assert not device.memory
    assert device.room > 5000


def test_noise_that_finds_no_memory_leaves_none_behind() -> None:
    device = Small()
    device.room = 1 << 20
    loop = DeviceLoop(device, Net(), SHAPE)
    short, long = plan(SCHEDULE, "euler_a", 3, 7.5), plan(SCHEDULE, "euler_a", 30, 7.5)
    *_, last = loop.run(short, generators())
    state = last.after
    device.room = 0
    with pytest.raises(EngineError, match="out of memory"):
        list(loop.run(long, generators()))
    device.room = 1 << 20
    *_, last = loop.run(short, generators())  # into memory of its own, not into what was given back
    np.testing.assert_array_equal(last.after, state)
    assert loop.memory["noise"].address in device.memory
    loop.close()
    assert not device.memory


def test_a_step_is_void_once_the_next_is_enqueued() -> None:
    """Another thread that asks meanwhile gets the step's own values or none."""
    device, model = CountingDevice(), Net()
    loop = DeviceLoop(device, model, SHAPE)
    steps = loop.run(plan(SCHEDULE, "euler", 4, 7.5), generators())
    first = next(steps)
    found: list[Any] = []

    def ask() -> None:
        with pytest.raises(ArgumentError, match="gone on"):
            first.after  # noqa: B018
        found.append(True)

    thread = threading.Thread(target=ask)
    enqueue = model.enqueue

    def slow(*args: Any) -> None:
        thread.start()
        thread.join(0.2)  # it waits for the lock
        enqueue(*args)

    model.enqueue = slow  # type: ignore[method-assign]
    next(steps)
    thread.join()
    assert found


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shape": (1, 4, 8)}, "shape is"),
        ({"shape": (0, 4, 8, 8)}, "shape is"),
        ({"channels": 3}, "channels is 3; the state alone has 4"),
        ({"rows": 0}, "rows is 0"),
        ({"depth": 9}, "depth is 9; the kernels hold a history of 0 .. 8"),
        ({"sample_type": "float64"}, "sample_type is 'float64'; choose from float32"),
        ({"output_type": "int8"}, "output_type"),
        ({"timestep_type": "float64"}, "timestep_type"),
    ],
)
def test_bad_loops(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        DeviceLoop(**({"device": CountingDevice(), "model": Net(), "shape": SHAPE} | changed))


def test_bad_runs_are_refused_before_anything_moves() -> None:
    device = CountingDevice()
    loop = DeviceLoop(device, Net(), SHAPE, rows=10, depth=1)
    table = plan(SCHEDULE, "euler", 4, 7.5)
    for bad, message in (
        ({"plan": plan(SCHEDULE, "euler", 11)}, "11 rows; this loop has room for 10"),
        ({"plan": plan(SCHEDULE, "lms", 5)}, "history; this loop has room for 1"),
        ({"streams": generators()[:1]}, "2 images need as many generators; 1 were given"),
        ({"x": np.zeros(SHAPE)}, "x is float64"),
        ({"x": np.zeros((1, 4, 6, 5), np.float32)}, "this loop needs float32"),
        ({"ahead": 0}, "ahead is 0"),
        ({"ahead": True}, "ahead is True"),
    ):
        with pytest.raises(ArgumentError, match=message):
            loop.run(**({"plan": table, "streams": generators()} | bad))
    assert device.calls == {}


class Decode:
    """Nearest enlargement, three channels of four."""

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken

    def enqueue(self, latents: DeviceArray, pixels: DeviceArray, stream: int) -> None:
        z = widened(view(latents))
        out = np.sin(z[:, :3]).repeat(8, axis=2).repeat(8, axis=3)
        if self.broken:
            out[0, 0, 0, 0] = np.inf
        view(pixels)[:] = narrowed(out, pixels.dtype)


@pytest.mark.parametrize(("latent", "pixel"), [("float32", "float32"), ("float16", "float16"), ("float16", "float32")])
def test_pictures(latent: str, pixel: str) -> None:
    loop = DeviceLoop(CountingDevice(), Net(), SHAPE)
    *_, last = loop.run(plan(SCHEDULE, "euler", 3, 7.5), generators())
    made = DevicePictures(loop, Decode(), 8, scale=0.18215, shift=0.1, latent_type=latent, pixel_type=pixel).draw()
    z = last.after / np.float32(0.18215) + np.float32(0.1)
    out = np.sin(widened(narrowed(z, latent))[:, :3]).repeat(8, axis=2).repeat(8, axis=3)
    np.testing.assert_array_equal(made, to_uint8(widened(narrowed(out, pixel))))
    assert made.shape == (2, 48, 40, 3)


def test_pictures_of_one_loop_share_their_memory() -> None:
    device = CountingDevice()
    loop = DeviceLoop(device, Net(), SHAPE)
    list(loop.run(plan(SCHEDULE, "euler", 3, 7.5), generators()))
    half = DevicePictures(loop, Decode(), 8, scale=1.0, latent_type="float16", pixel_type="float16")
    whole = DevicePictures(loop, Decode(), 8, scale=1.0)
    first = half.draw()
    blocks = len(device.memory)
    expected = whole.draw()  # in larger blocks
    np.testing.assert_array_equal(half.draw(), first)
    np.testing.assert_array_equal(whole.draw(), expected)
    assert len(device.memory) == blocks
    loop.close()
    assert not device.memory


def test_broken_pictures_name_the_decoder() -> None:
    loop = DeviceLoop(CountingDevice(), Net(), SHAPE)
    list(loop.run(plan(SCHEDULE, "euler", 3, 7.5), generators()))
    with pytest.raises(EngineError, match="vae_decoder gave values that are not finite"):
        DevicePictures(loop, Decode(broken=True), 8, scale=0.18215).draw()
    with pytest.raises(ArgumentError, match="pixel_type"):
        DevicePictures(loop, Decode(), 8, scale=1.0, pixel_type="uint8")
