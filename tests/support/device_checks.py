"""Checks of the device loop that hold on every device, beside the host loop with the same model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from edgediff.device.array import DeviceArray
from edgediff.device.loop import DeviceLoop
from edgediff.device.pictures import DevicePictures
from edgediff.sampling.planning import Plan, plan
from edgediff.sampling.rng import Generator, TorchCpuGenerator, TorchCudaGenerator
from edgediff.sampling.schedule import Schedule
from tests.support.host_device import narrowed, widened

from .replay import CALLS, Float32, Replay, Shape, Tape, copy, fetched, largest_error, on_host

STEPS = 6
EXACT, NOISY = 1e-6, 1e-5  # limits of max|dx| / max|x|; the latter where the device draws the noise
SMALL: tuple[Shape, ...] = ((1, 4, 64, 64), (2, 3, 7, 5), (3, 4, 33, 17))
LARGE: tuple[Shape, ...] = ((8, 4, 128, 128), (2, 3, 301, 303))  # four values a thread; strides of one value
ALIKE = (("float32", "float32"), ("float16", "float16"))  # the model's input and output
MIXED = (("float16", "float32"), ("float32", "float16"))
TIMESTEPS = {"float32": "float32", "float16": "int64"}  # by the input's type
SEEDS = range(7, 15)
PREDICTIONS = ("epsilon", "v_prediction")
GUIDANCES: dict[str, dict[str, Any]] = {
    "off": {"guidance_scale": 1.0},
    "7.5": {"guidance_scale": 7.5},
    "interval": {"guidance_scale": 7.5, "guidance_interval": (0.25, 0.75)},
}


class Run(NamedTuple):
    """One run of the device loop: its settings, its error, and whether its state equals the host's to the bit."""

    label: str
    noise: str  # drawn by the "host" or by the "device"
    error: float
    bit_equal: bool


def check_sampler(
    device: Any,
    sampler: str,
    shapes: Sequence[Shape],
    types: Sequence[tuple[str, str]],
    predictions: Sequence[str] = PREDICTIONS,
) -> list[Run]:
    """Run a sampler with every guidance, prediction, shape and type, and hold each run against the host loop.

    Asserts that the state and the x0 estimate are the host's, and that the model was told the state and the timestep.
    """
    return [
        run
        for shape in shapes
        for sample, output in types
        for run in _check_types(device, sampler, shape, sample, output, predictions)
    ]


@cache
def _tapes(kind: str, size: tuple[int, int], shape: Shape) -> list[Tape]:
    """One generator an image: torch's on a CPU, or on a GPU of this size. Kept, since drawing takes the longest."""
    seeds = SEEDS[: shape[0]]
    return [Tape(TorchCpuGenerator(s) if kind == "host" else TorchCudaGenerator(s, *size)) for s in seeds]


def _check_types(
    device: Any, sampler: str, shape: Shape, sample: str, output: str, predictions: Sequence[str]
) -> Iterator[Run]:
    size = (getattr(device, "multiprocessors", 132), getattr(device, "threads_per_multiprocessor", 2048))
    model = Replay(device, shape, output)
    channels = shape[1] + (5 if shape[0] == 2 else 0)  # as an inpainting model's input
    loop = DeviceLoop(
        device,
        model,
        shape,
        channels=channels,
        rows=CALLS,
        sample_type=sample,
        output_type=output,
        timestep_type=TIMESTEPS[sample],
    )
    for prediction in predictions:
        for guidance, arguments in GUIDANCES.items():
            table = plan(Schedule(prediction_type=prediction), sampler, STEPS, **arguments)
            for kind, limit in (("host", EXACT), ("device", NOISY)):
                tapes = _tapes(kind, size, shape)
                expected = on_host(table, model, shape, [tape.rewound() for tape in tapes])
                model.call = 0
                streams: list[Generator] = [tape.rewound() for tape in tapes]
                if kind == "device":  # it draws for generators of this type alone
                    streams = [TorchCudaGenerator(s, *size) for s in SEEDS[: shape[0]]]
                *_, last = loop.run(table, streams)
                after, x0 = last.after, last.x0()
                label = f"{sampler} {shape} {sample}/{output} {prediction}, guidance {guidance}, noise of the {kind}"
                error = max(largest_error(after, expected.after), largest_error(x0, expected.x0()))
                assert error <= limit, f"{label}: error {error:.3g}"
                _check_told(loop, table, after, label)
                yield Run(label, kind, error, np.array_equal(after, expected.after))
    loop.close()
    model.close()


def _check_told(loop: DeviceLoop, table: Plan, after: Float32, label: str) -> None:
    """Assert what the last row left: the model's next input, and its own timestep."""
    copies = 2 if table.guided else 1
    batch, own = loop.shape[:2]
    fed = fetched(loop.device, loop.sample)[: copies * batch]
    expected = np.concatenate([narrowed(after, loop.sample_type)] * copies)
    assert np.array_equal(fed[:, :own], expected), f"{label}: the model's input is not the state"
    assert not fed[:, own:].any(), f"{label}: the model's other channels were written"
    told = widened(fetched(loop.device, loop.timestep))[: copies * batch]
    t = widened(narrowed(np.array([table.rows[-1].t], np.float32), loop.timestep_type))
    assert (told == t).all(), f"{label}: timestep {told[0]}, not {t[0]}"


def check_graph(device: Any) -> None:
    """Assert that a captured graph gives the host loop's values, in its first run and in one of another length."""
    shape = SMALL[2]
    model = Replay(device, shape, "float16", fixed=True)
    loop = DeviceLoop(device, model, shape, rows=32, sample_type="float16", output_type="float16")
    for steps in (20, 12):
        table = plan(Schedule(), "dpmpp_2m_sde", steps, 7.5)
        *_, last = loop.run(table, [TorchCpuGenerator(s) for s in range(3)])
        expected = on_host(table, model, shape, [TorchCpuGenerator(s) for s in range(3)])
        assert largest_error(last.after, expected.after) <= EXACT, f"{steps} steps"
    assert list(loop.graphs.states.values()) == ["captured"]
    loop.close()
    model.close()


class Pixels:
    """A stand-in decoder: it keeps the latents that it was given, and writes pixels made beforehand."""

    def __init__(self, device: Any, memory: np.ndarray) -> None:
        self.device, self.address = device, device.allocate(memory.nbytes)
        device.upload(self.address, memory)
        self.latents: DeviceArray | None = None

    def enqueue(self, latents: DeviceArray, pixels: DeviceArray, stream: int) -> None:
        self.latents = latents
        copy(self.device, pixels.address, self.address, pixels.nbytes)


def check_pictures(device: Any, dtype: str) -> None:
    """Assert that ``DevicePictures`` gives NumPy's latents and pixels."""
    shape: Shape = (2, 4, 9, 7)
    model = Replay(device, shape, dtype)
    loop = DeviceLoop(device, model, shape, rows=CALLS, output_type=dtype)
    *_, last = loop.run(plan(Schedule(), "ddim", STEPS, 7.5), [TorchCpuGenerator(s) for s in range(2)])
    memory = narrowed(1.2 * np.random.default_rng(1).standard_normal((2, 3, 18, 14)).astype(np.float32), dtype)
    decoder = Pixels(device, memory)
    drawn = DevicePictures(loop, decoder, 2, 0.18215, 0.1, latent_type=dtype, pixel_type=dtype).draw()
    levels = np.rint(widened(memory) * np.float32(127.5) + np.float32(127.5)).clip(0, 255)
    np.testing.assert_array_equal(drawn, levels.astype(np.uint8).transpose(0, 2, 3, 1))
    assert decoder.latents is not None
    latents = narrowed(last.after / np.float32(0.18215) + np.float32(0.1), dtype)
    np.testing.assert_array_equal(fetched(device, decoder.latents), latents)
    loop.close()
    for address in (model.address, decoder.address):
        device.free(address)
