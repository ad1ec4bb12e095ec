"""A request on a device: conditions, U-Net, loop and decoder without the host in between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32
from ..bundle.manifest import Bundle
from ..device.array import DeviceArray
from ..device.base import Device
from ..device.loop import DeviceLoop, DeviceStep
from ..device.pictures import DevicePictures
from ..engines.base import StreamEngine
from ..engines.choose import Parts
from ..errors import EngineError
from ..sampling.loop import LoopStep
from ..sampling.planning import Plan
from ..sampling.rng import Generator
from .conditioned_unet import ConditionedUnet
from .conditioning import Group

AHEAD = 2  # steps that the host may be ahead: progress is true, and cancelling saves work


class _Decoder:
    def __init__(self, engine: StreamEngine) -> None:
        self._engine = engine

    def enqueue(self, latents: DeviceArray, pixels: DeviceArray, stream: int) -> None:
        self._engine.enqueue({"latent_sample": latents}, {"sample": pixels}, stream)


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
