"""From the device loop's last state to pictures, without the host in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, choices
from ..sampling.kernels import HEADER, require_package
from .base import DeviceArray
from .loop import FLOAT_TYPES, DeviceLoop


class Decoder(Protocol):
    """A VAE decoder that can enqueue itself on a stream."""

    def enqueue(self, latents: DeviceArray, pixels: DeviceArray, stream: int) -> None:
        """Enqueue one call that reads ``latents`` (B, C, h, w) and writes ``pixels`` (B, 3, H, W)."""


@dataclass
class DevicePictures:
    """From a loop's final state to pictures, on the device: scaling, decoder, uint8 in one download.

    Args:
        loop: whose state is drawn.
        decoder: the VAE decoder.
        factor: pixels a latent, on each side.
        scale, shift: of the latents; the decoder takes ``x/scale + shift``.
        latent_type, pixel_type: of the decoder's tensors.
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
        batch, _, height, width = self.loop.shape
        self._size = (batch, height * self.factor, width * self.factor)
        self._latents = self.loop._array(self.loop.shape, self.latent_type)
        self._pixels = self.loop._array((batch, 3, *self._size[1:]), self.pixel_type)
        self._bytes = self.loop.allocate(3 * int(np.prod(self._size)))

    def draw(self) -> NDArray[np.uint8]:
        """The pictures, uint8 (B, H, W, 3). Waits for the device.

        Raises:
            EngineError: the loop or the decoder gave values that are not finite, or the device failed.
        """
        with self.loop.device.lock:
            return self._draw()

    def _draw(self) -> NDArray[np.uint8]:
        loop, kernels = self.loop, require_package()
        device, latents, pixels = loop.device, self._latents, self._pixels
        loop._launch(
            lambda stream: kernels.unscale(
                device=device.ordinal,
                x=(loop.state.address, loop.state.nbytes),
                z=(latents.address, latents.nbytes),
                type=latents.dtype,
                count=int(np.prod(latents.shape)),
                scale=self.scale,
                shift=self.shift,
                stream=stream,
            )
        )
        self.decoder.enqueue(latents, pixels, device.stream)
        out = np.empty((*self._size, 3), np.uint8)
        loop._launch(
            lambda stream: kernels.to_uint8(
                device=device.ordinal,
                decoded=(pixels.address, pixels.nbytes),
                pixels=(self._bytes, out.nbytes),
                header=(loop._at["header"], HEADER.itemsize),
                type=pixels.dtype,
                images=self._size[0],
                area=self._size[1] * self._size[2],
                stream=stream,
            )
        )
        device.download(self._bytes, out)
        loop.check()
        return out
