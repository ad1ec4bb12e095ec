"""What a call gives: a step after every U-Net call, and at the end the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32
from ..errors import ArgumentError
from ..image import to_pil, to_uint8
from ..sampling.loop import LoopStep
from ..system_memory import memory_named
from .autoencoder import Autoencoder, PreviewMethod
from .metadata import parameters
from .request import Request
from .watch import Watch

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..device.loop import DeviceStep
    from .device_runner import DeviceRunner


@dataclass(frozen=True, repr=False)
class Step:
    """A step is one U-Net call of a running stream; some samplers make two in most of their steps.

    Attributes:
        index: of the call, from 0.
        total: how many calls the stream makes.
    """

    index: int
    total: int
    _request: Request
    _autoencoder: Autoencoder
    _values: LoopStep | DeviceStep
    _watch: Watch
    _runner: DeviceRunner | None = None  # on a device

    def __repr__(self) -> str:
        return f"Step({self.index + 1} of {self.total})"

    @property
    def latents(self) -> Float32:
        """The state after this step, (B, C, h, w) float32."""
        return self._values.after

    @property
    def x0(self) -> Float32:
        """The model's estimate of the finished latents at this step, (B, C, h, w) float32."""
        return self._values.x0()

    @property
    def last(self) -> bool:
        """Whether this is the last step, whose ``result`` can be asked for."""
        return self.index + 1 == self.total

    def preview(self, how: PreviewMethod | None = None) -> list[Image]:
        """A cheap look at where each picture is heading: the x0 estimate by the bundle's tiny decoder (``how``
        decoder), or by its latent-to-RGB matrix (matrix); the first that the bundle has when None.

        Raises ``ArgumentError`` when the bundle has none.
        """
        with memory_named("drawing a preview"):
            return [to_pil(p) for p in self._autoencoder.preview(self.x0, how)]

    def decode(self) -> list[Image]:
        """The x0 estimate through the real decoder, as Pillow images."""
        with memory_named("decoding a step"):
            return [to_pil(p) for p in to_uint8(self._autoencoder.decode(self.x0))]

    def result(self) -> Result:
        """The finished pictures; ``ArgumentError`` before the last step, and ``DeadlineError`` where the call's time is
        over before they are decoded.
        """
        if not self.last:
            raise ArgumentError(f"step {self.index + 1} of {self.total} is not the last; use preview() or decode()")
        if self._request.arguments.output_type == "latent":
            return self._result()
        with self._watch.stage("decoding the pictures", "the decoded pictures"):
            return self._result()

    def _result(self) -> Result:
        request, bundle = self._request, self._autoencoder.parts.bundle
        drawn = None
        if self._runner is not None and request.arguments.output_type != "latent":
            drawn = self._runner.draw(self._values, self._autoencoder.parts)
        latents = self.latents
        texts = tuple(parameters(bundle, request, k) for k in range(len(request.prompts)))
        return Result(self._images(latents, drawn, texts), latents, request.seeds, texts)

    def _images(self, latents: Float32, drawn: NDArray[np.uint8] | None, texts: tuple[str, ...]) -> Any:
        kind = self._request.arguments.output_type
        if kind == "latent":
            return latents
        pixels = to_uint8(self._autoencoder.decode(latents)) if drawn is None else drawn
        return [to_pil(p, text) for p, text in zip(pixels, texts, strict=True)] if kind == "pil" else pixels


@dataclass(frozen=True, repr=False)
class Result:
    """A result holds finished pictures.

    Attributes:
        images: Pillow images; with ``output_type`` np one array, uint8 (B, H, W, 3); with latent the latents.
        latents: the final state, (B, C, h, w) float32.
        seeds: one an image.
        parameters: the text that ``edgediff.save`` writes into each picture.
    """

    images: list[Image] | Any
    latents: Float32
    seeds: tuple[int, ...]
    parameters: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Result({len(self.seeds)} images, seeds {self.seeds})"

    @property
    def array(self) -> NDArray[Any]:
        """The pictures as one array, as ``output_type`` np or latent asked for them; ``ArgumentError`` for pil."""
        if not isinstance(self.images, np.ndarray):
            raise ArgumentError("the pictures are Pillow images; ask for output_type='np' to have an array")
        return self.images
