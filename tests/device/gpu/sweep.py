"""Checks of the device loop against the host loop: every sampler, graphs, pictures. Used by ``benchmarks.kernel``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.sections import Report
from edgediff.device.base import DeviceArray
from edgediff.device.cuda import CudaDevice
from edgediff.device.loop import DeviceLoop
from edgediff.device.pictures import DevicePictures
from edgediff.sampling.planning import Plan, plan
from edgediff.sampling.rng import Generator, TorchCpuGenerator, TorchCudaGenerator
from edgediff.sampling.samplers import SAMPLERS
from edgediff.sampling.schedule import Schedule

from ...support.replay import ROWS, Float32, Replay, Shape, Tape, copy, fetched, on_host, packed, relative, unpacked

EXACT, NOISY = 1e-6, 1e-5  # limits of max|dx| / max|x|; the latter where the device draws the noise
SMALL: tuple[Shape, ...] = ((1, 4, 64, 64), (2, 3, 7, 5), (3, 4, 33, 17))
LARGE: tuple[Shape, ...] = ((8, 4, 128, 128), (2, 3, 301, 303))  # four values a thread; strides of one value
ALIKE = (("float32", "float32"), ("float16", "float16"), ("bfloat16", "bfloat16"))  # the model's input and output
MIXED = (("float16", "float32"), ("float32", "bfloat16"), ("bfloat16", "float16"))
TIMESTEPS = {"float32": "float32", "float16": "float16", "bfloat16": "int64"}  # by the input's type
FEW = ("ddim", "euler_a", "dpmpp_2m", "dpmpp_sde", "unipc_3")
GUIDANCES: dict[str, dict[str, Any]] = {
    "off": {"guidance_scale": 1.0},
    "7.5": {"guidance_scale": 7.5},
    "interval": {"guidance_scale": 7.5, "guidance_interval": (0.25, 0.75)},
}


def settings(shapes: Iterable[Shape], types: Iterable[tuple[str, str]]) -> Iterator[tuple[Shape, str, str]]:
    types = list(types)
    for shape in shapes:
        for sample, output in types:
            yield shape, sample, output


def sweep(
    device: Any,
    samplers: Sequence[str],
    over: Iterable[tuple[Shape, str, str]],
    predictions: Sequence[str] = ("epsilon", "v_prediction"),
    emulated: int = 0,
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Every sampler x guidance x prediction on every (shape, input type, output type) against the host loop.

    Gives, by sampler, the worst errors with noise from the host and from the device, how many runs there were, and how
    many of the former equal the host's to the bit; and a list of runs whose model input or timestep were wrong.
    """
    size = (getattr(device, "multiprocessors", 132), getattr(device, "threads_per_multiprocessor", 2048))
    kinds: dict[str, tuple[Callable[[int], Generator], float]] = {
        "host_noise": (TorchCpuGenerator, EXACT),
        "device_noise": (lambda seed: TorchCudaGenerator(seed, *size), NOISY),
    }
    found: dict[str, dict[str, float]] = {}
    for name in samplers:
        found[name] = {"runs": 0, "bit_equal": 0, "host_noise": 0.0, "device_noise": 0.0}
    wrong: list[str] = []
    schedules = [Schedule(prediction_type=prediction) for prediction in predictions]
    for shape, sample, output in over:
        seeds = range(7, 7 + shape[0])
        tapes = {kind: [Tape(generator(s)) for s in seeds] for kind, (generator, _) in kinds.items()}
        model = Replay(device, shape, output)
        channels = shape[1] + (5 if shape[0] == 2 else 0)  # as an inpainting model's input
        types = {"sample_type": sample, "output_type": output, "timestep_type": TIMESTEPS[sample]}
        loop = DeviceLoop(device, model, shape, channels=channels, rows=ROWS, emulated=emulated, **types)
        for sampler in samplers:
            for schedule in schedules:
                for guidance, chosen in GUIDANCES.items():
                    table = plan(schedule, sampler, STEPS, **chosen)
                    for kind, (generator, limit) in kinds.items():
                        expected = on_host(table, model, shape, [tape.rewound() for tape in tapes[kind]])
                        model.call = 0
                        streams = [tape.rewound() for tape in tapes[kind]]
                        if kind == "device_noise":
                            streams = [generator(s) for s in seeds]
                        for step in loop.run(table, streams):
                            pass
                        after, x0 = step.after, step.x0()
                        error = max(relative(after, expected.after), relative(x0, expected.x0()))
                        entry = found[sampler]
                        entry[kind] = max(entry[kind], error)
                        entry["runs"] += 1
                        entry["bit_equal"] += kind == "host_noise" and np.array_equal(after, expected.after)
                        label = f"{sampler} {shape} {sample}/{output} {schedule.prediction_type} {guidance} {kind}"
                        if not error <= limit:
                            wrong.append(f"{label}: error {error:.3g}")
                        wrong += [f"{label}: {what}" for what in _not_told(loop, table, after)]
        loop.close()
    return found, wrong


def _not_told(loop: DeviceLoop, table: Plan, after: Float32) -> list[str]:
    """What the last row left wrong of the model's next input and its own timestep."""
    copies = 2 if table.guided else 1
    batch, own = loop.shape[:2]
    with np.errstate(invalid="ignore"):
        fed = fetched(loop.device, loop.sample)[: copies * batch]
        expected = np.concatenate([packed(after, loop.sample_type)] * copies)
        told = unpacked(fetched(loop.device, loop.timestep), loop.timestep_type)[: copies * batch]
        t = unpacked(packed(np.float32([table.rows[-1].t]), loop.timestep_type), loop.timestep_type)
    wrong = [] if np.array_equal(fed[:, :own], expected) else ["the model's input is not the state"]
    if fed[:, own:].any():
        wrong.append("the model's other channels were written")
    return wrong if (told == t).all() else [*wrong, f"timestep {told[0]}, not {t[0]}"]


def samplers(findings: Report, device: Any, emulated: int = 0) -> None:
    """B: every sampler x guidance x prediction x type on small odd shapes; some on large ones; graphs; pictures."""
    found, wrong = sweep(device, tuple(SAMPLERS), settings(SMALL, ALIKE), emulated=emulated)
    large, wrong_large = sweep(device, FEW, settings(LARGE, MIXED), ("epsilon",), emulated)
    findings.figures |= {"small_shapes": found, "large_shapes": large, "limits": {"exact": EXACT, "noisy": NOISY}}
    for name, entries, errors in (("small", found, wrong), ("large", large, wrong_large)):
        runs = sum(e["runs"] for e in entries.values())
        equal = sum(e["bit_equal"] for e in entries.values())
        worst = [max(e[kind] for e in entries.values()) for kind in ("host_noise", "device_noise")]
        detail = f"{runs} runs, {equal} of {runs // 2} equal to the bit, worst {worst[0]:.2g}; {worst[1]:.2g}"
        findings.check(f"every sampler, {name} shapes", not errors, "; ".join([detail, *errors[:5]]))
    findings.check("replayed graph", graphs(device, emulated), "20 steps, two runs")
    findings.check("pictures", pictures(device), "scaling, rounding to uint8")


def graphs(device: Any, emulated: int = 0) -> bool:
    """Whether a captured graph gives the host loop's values, in its first run and in the next, of another length."""
    shape = SMALL[2]
    model = Replay(device, shape, "float16", fixed=True)
    loop = DeviceLoop(device, model, shape, rows=32, sample_type="float16", output_type="float16", emulated=emulated)
    good = True
    for steps in (20, 12):
        table = plan(Schedule(), "dpmpp_2m_sde", steps, 7.5)
        for step in loop.run(table, [TorchCpuGenerator(s) for s in range(3)]):
            pass
        expected = on_host(table, model, shape, [TorchCpuGenerator(s) for s in range(3)])
        good = good and relative(step.after, expected.after) <= EXACT
    return good and len(loop._graphs) == 1


class Pixels:
    """A stand-in decoder: keeps the latents it was given and writes pixels made beforehand."""

    def __init__(self, device: Any, memory: NDArray[Any]) -> None:
        self.device, self.address = device, device.allocate(memory.nbytes)
        device.upload(self.address, memory)
        self.latents: DeviceArray | None = None

    def enqueue(self, latents: DeviceArray, pixels: DeviceArray, stream: int) -> None:
        self.latents = latents
        copy(self.device, pixels.address, self.address, pixels.nbytes)


def pictures(device: Any) -> bool:
    """Whether ``DevicePictures`` gives NumPy's latents and pixels."""
    shape: Shape = (2, 4, 9, 7)
    for dtype in ("float32", "float16", "bfloat16"):
        model = Replay(device, shape, dtype)
        loop = DeviceLoop(device, model, shape, rows=ROWS, output_type=dtype)
        for step in loop.run(plan(Schedule(), "ddim", STEPS, 7.5), [TorchCpuGenerator(s) for s in range(2)]):
            pass
        memory = packed(1.2 * np.random.default_rng(1).standard_normal((2, 3, 18, 14)).astype(np.float32), dtype)
        decoder = Pixels(device, memory)
        drawn = DevicePictures(loop, decoder, 2, 0.18215, 0.1, latent_type=dtype, pixel_type=dtype).draw()
        levels = np.rint(unpacked(memory, dtype) * np.float32(127.5) + np.float32(127.5)).clip(0, 255)
        assert decoder.latents is not None
        latents = packed(step.after / np.float32(0.18215) + np.float32(0.1), dtype)
        if not np.array_equal(drawn, levels.astype(np.uint8).transpose(0, 2, 3, 1)):
            return False
        if not np.array_equal(fetched(device, decoder.latents), latents):
            return False
    return True


def sanitized(device: CudaDevice) -> int:
    """A few runs of everything, for compute-sanitizer; how many failed."""
    _, wrong = sweep(device, ("dpmpp_2m", "dpmpp_sde"), settings(SMALL[1:], ALIKE[1:]))
    _, large = sweep(device, ("dpmpp_2m_sde",), settings(LARGE, MIXED[:1]))
    print("\n".join(wrong + large))
    return len(wrong) + len(large) + (not graphs(device)) + (not pictures(device))
