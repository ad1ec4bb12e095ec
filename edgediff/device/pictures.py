"""The device loop's last state becomes pictures, without the host in between."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, choices
from .array import FLOAT_TYPES, DeviceArray
from .loop import DeviceLoop


class Decoder(Protocol):
    """A decoder is a VAE decoder that can enqueue itself on a stream."""

    def enqueue(self, latents: DeviceArray, pixels: DeviceArray, stream: int) -> None:
        """Enqueue one call that reads ``latents`` (B, C, h, w) and writes ``pixels`` (B, 3, H, W)."""


@dataclass
class DevicePictures:
    """``DevicePictures`` makes pictures of a loop's state, on the device: scaling, decoder, uint8 in one download.

    Its buffers lie in the loop's memory, where all pictures of a loop share them.

    Args:
        loop: whose state is drawn.
        decoder: the VAE decoder.
        factor: pixels a latent, on each side.
        scale, shift: of the latents; the decoder takes ``x/scale + shift``.
        latent_type, pixel_type: of the decoder's tensors.

    Raises:
        ArgumentError: an unknown type.
    """

    loop: DeviceLoop
    decoder: Decoder
    factor: int
    scale: float
    shift: float = 0.0
    latent_type: str = "float32"
    pixel_type: str = "float32"

    def __post_init__(self) -> None:
        for name in ("latent_type", "pixel_type"):
            if getattr(self, name) not in FLOAT_TYPES:
                raise ArgumentError(f"{name} is {getattr(self, name)!r}; choose from {choices(FLOAT_TYPES)}")

    def draw(self) -> NDArray[np.uint8]:
        """The pictures, uint8 (B, H, W, 3). Waits for the device.

        Raises:
            EngineError: the loop or the decoder gave values that are not finite, or there is no memory, or the device
                failed.
        """
        with self.loop.device.lock:
            return self._draw()

    def _draw(self) -> NDArray[np.uint8]:
        loop = self.loop
        device, memory = loop.device, loop.memory
        batch, _, height, width = loop.shape
        out = np.empty((batch, height * self.factor, width * self.factor, 3), np.uint8)
        latents = memory.array("latents", loop.shape, self.latent_type)
        pixels = memory.array("pixels", (batch, 3, *out.shape[1:3]), self.pixel_type)
        picture = memory.reserve("picture", out.nbytes)
        count, state = math.prod(latents.shape), loop.update.state.block
        device.kernels.unscale(state, latents.block, latents.dtype, count, self.scale, self.shift)
        self.decoder.enqueue(latents, pixels, device.stream)
        area = math.prod(out.shape[1:3])
        device.kernels.to_uint8(pixels.block, picture, memory["header"], pixels.dtype, batch, area)
        device.download(picture.address, out)
        loop.update.check()
        return out
