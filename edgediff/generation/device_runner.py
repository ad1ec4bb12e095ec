"""A request on a device: conditions, U-Net, loop and decoder without the host in between."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from collections.abc import Generator as GeneratorType
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32
from ..bundle.manifest import Bundle, Tensor
from ..device.base import Device, DeviceArray
from ..device.loop import DeviceLoop, DeviceStep
from ..device.pictures import DevicePictures
from ..engines.base import StreamEngine
from ..engines.choose import Parts
from ..errors import EngineError
from ..sampling.loop import LoopStep
from ..sampling.planning import Plan
from ..sampling.rng import Generator
from .conditioning import Conditioning, Group
from .request import Request

PLAN_ROWS, PLAN_DEPTH = 256, 8  # room for plans; longer ones get a loop of their own
AHEAD = 2  # steps that the host may be ahead: progress is true, and cancelling saves work
IDLE_RUNNERS = 2  # idle runners


class ConditionedUnet:
    """This U-Net keeps its conditions in device memory, the unconditional half first.

    Conditions of one shape keep their place, so that a captured graph serves the next request.
    """

    def __init__(self, device: Device, engine: StreamEngine, inputs: Sequence[Tensor], images: int) -> None:
        self._device, self._engine, self._images = device, engine, images
        self._types = {t.name: t.dtype for t in inputs}
        self._places: dict[tuple[str, tuple[int, ...]], DeviceArray] = {}
        self._now: dict[str, DeviceArray] = {}
        self.capture, self.warm_runs = engine.capture, engine.warm_runs

    @property
    def key(self) -> Hashable:
        return self._engine.key, tuple(sorted((name, array.shape) for name, array in self._now.items()))

    def set(self, inputs: Mapping[str, Float32]) -> None:
        """The conditions of every image: (2*B, ...) each, or (B, ...) without guidance, where the other half is not
        read.
        """
        self._now = {}
        for name, values in inputs.items():
            both = values if len(values) > self._images else np.concatenate([values, values])
            both = both.astype(self._types[name])
            place = (name, both.shape)
            if place not in self._places:
                self._places[place] = DeviceArray(self._device.allocate(both.nbytes), both.shape, self._types[name])
            self._now[name] = self._places[place]
            self._device.upload(self._now[name].address, both)

    def enqueue(self, sample: DeviceArray, timestep: DeviceArray, output: DeviceArray, stream: int) -> None:
        inputs = {"sample": sample, "timestep": timestep}
        for name, array in self._now.items():
            inputs[name] = array if sample.shape[0] > self._images else _second_half(array)
        self._engine.enqueue(inputs, {"out_sample": output}, stream)

    def close(self) -> None:
        for array in self._places.values():
            self._device.free(array.address)
        self._places.clear()


def _second_half(array: DeviceArray) -> DeviceArray:
    return DeviceArray(array.address + array.nbytes // 2, (array.shape[0] // 2, *array.shape[1:]), array.dtype)


class _Decoder:
    def __init__(self, engine: StreamEngine) -> None:
        self._engine = engine

    def enqueue(self, latents: DeviceArray, pixels: DeviceArray, stream: int) -> None:
        self._engine.enqueue({"latent_sample": latents}, {"sample": pixels}, stream)


def device_engine(
    request: Request, conditioning: Conditioning, parts: Parts, device: Device | None, sample: tuple[int, ...]
) -> StreamEngine | None:
    """The U-Net's engine, where the device loop can run the request by it: guidance in the rows, texts of one length,
    an engine that enqueues. ``sample`` is one image's shape, (C', h, w).
    """
    if device is None or request.combiner() is not None or conditioning.largest is None:
        return None
    engine: Any = parts.pick("unet", conditioning.largest.shapes(sample))
    return engine if hasattr(engine, "enqueue") else None


def run_on_device(
    plan: Plan,
    device: Device,
    unet: StreamEngine,
    bundle: Bundle,
    runners: RunnerPool,
    shape: tuple[int, int, int, int],
    streams: Sequence[Generator],
    x: Float32 | None,
    conditioning: Conditioning,
    extra: Float32 | None,
) -> GeneratorType[tuple[DeviceRunner, DeviceStep], None, None]:
    """Borrow a runner for the state's ``shape`` and yield after every row; the last step's values come to the host
    when the iterator goes on.
    """
    assert conditioning.largest is not None
    room = max(PLAN_ROWS, 1 << (len(plan.rows) - 1).bit_length())

    def make() -> DeviceRunner:
        return DeviceRunner(device, bundle, unet, shape, room, PLAN_DEPTH)

    with runners.borrow((shape, room, id(unet)), make) as runner:
        for step in runner.run(plan, streams, x, conditioning.largest, extra):
            yield runner, step
        step.settle()


class DeviceRunner:
    """A runner makes pictures of one size and number on a device, one request at a time.

    Args:
        device: where.
        bundle: for the parts' tensors and the latents' facts.
        unet: an engine of ``device``.
        shape: of the latents, (B, C, h, w).
        rows, depth: room for plans.
    """

    def __init__(
        self,
        device: Device,
        bundle: Bundle,
        unet: StreamEngine,
        shape: tuple[int, int, int, int],
        rows: int,
        depth: int,
    ) -> None:
        taken = {t.name: t for t in bundle.parts["unet"].inputs}
        channels = taken["sample"].shape[1]
        if not isinstance(channels, int):
            raise EngineError(f"unet: its sample has {channels!r} channels; the device loop needs a number")
        self.device, self._bundle = device, bundle
        self._model = ConditionedUnet(device, unet, tuple(taken.values()), shape[0])
        self._pictures: tuple[StreamEngine, DevicePictures] | None = None
        with device.lock:  # memory comes from the stream, which another thread may be capturing
            self.loop = DeviceLoop(
                device,
                self._model,
                shape,
                channels=channels,
                rows=rows,
                depth=depth,
                sample_type=taken["sample"].dtype,
                output_type=bundle.parts["unet"].outputs[0].dtype,
                timestep_type=taken["timestep"].dtype,
            )

    def run(
        self, plan: Plan, streams: Sequence[Generator], x: Float32 | None, group: Group, extra: Float32 | None
    ) -> Iterator[DeviceStep]:
        """As ``DeviceLoop.run``; ``group`` is the largest batch of the plan, and ``extra`` (B, C', h, w) are the
        further channels of an inpainting model.
        """
        with self.device.lock:
            self._model.set(group.inputs)
            if extra is not None:
                images, own = self.loop.shape[:2]
                sample = np.zeros(self.loop.sample.shape, np.float32)
                sample[:images, own:] = sample[images:, own:] = extra
                self.device.upload(self.loop.sample.address, sample.astype(self.loop.sample.dtype))
        return self.loop.run(plan, streams, x, ahead=AHEAD)

    def draw(self, step: DeviceStep | LoopStep, parts: Parts) -> NDArray[np.uint8] | None:
        """The pictures of a last step, uint8 (B, H, W, 3); None where they cannot be drawn on the device, or it does
        not hold the step any more.
        """
        if self._bundle.latent.factor == 1:
            return None
        decoder: Any = parts.pick("vae_decoder", {"latent_sample": self.loop.shape})
        if not hasattr(decoder, "enqueue") or not isinstance(step, DeviceStep):
            return None
        with self.device.lock:
            if not step.live:
                return None
            if self._pictures is None or self._pictures[0] is not decoder:
                self._pictures = decoder, self._drawer(decoder)
            return self._pictures[1].draw()

    def _drawer(self, decoder: StreamEngine) -> DevicePictures:
        latent, part = self._bundle.latent, self._bundle.parts["vae_decoder"]
        return DevicePictures(
            self.loop,
            _Decoder(decoder),
            latent.factor,
            latent.scale,
            latent.shift,
            latent_type=part.inputs[0].dtype,
            pixel_type=part.outputs[0].dtype,
        )

    def close(self) -> None:
        with self.device.lock:
            self.loop.close()
            self._model.close()


class RunnerPool:
    """A pool lends runners, makes one when there is none, and keeps a few that are idle."""

    def __init__(self) -> None:
        self._idle: list[tuple[Hashable, DeviceRunner]] = []
        self._lock = threading.RLock()  # the collector may close a generator, which gives its runner back, anywhere

    @contextmanager
    def borrow(self, key: Hashable, make: Callable[[], DeviceRunner]) -> Iterator[DeviceRunner]:
        """A runner for ``key`` alone; one that failed is not used again."""
        runner = self._take(key) or self._made(make)
        try:
            yield runner
        except EngineError:
            with suppress(EngineError):  # the first one says what is wrong
                runner.close()
            raise
        except BaseException:
            self._give_back(key, runner)
            raise
        self._give_back(key, runner)

    def _made(self, make: Callable[[], DeviceRunner]) -> DeviceRunner:
        try:
            return make()
        except EngineError:
            if not self.clear():
                raise
            return make()  # with the memory of those that were idle

    def clear(self) -> int:
        """Let go of those that are idle; how many there were."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, runner in idle:
            runner.close()
        return len(idle)

    def _take(self, key: Hashable) -> DeviceRunner | None:
        with self._lock:
            for entry in tuple(self._idle):
                if entry[0] == key:
                    with suppress(ValueError):  # given back and dropped meanwhile
                        self._idle.remove(entry)
                        return entry[1]
        return None

    def _give_back(self, key: Hashable, runner: DeviceRunner) -> None:
        with self._lock:
            self._idle.append((key, runner))
            over = [self._idle.pop(0) for _ in range(len(self._idle) - IDLE_RUNNERS)]
        for _, old in over:
            old.close()
