"""Picture and mask -> the further channels of an inpainting U-Net (Rombach et al. 2022, https://arxiv.org/abs/2112.10752)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Float32
from ..bundle.manifest import Bundle, Latent
from ..errors import ArgumentError
from .pictures import image_pixels, mask_pixels

Encode = Callable[[Float32], tuple[Float32, Float32 | None]]
THRESHOLD = 128  # of 255; brighter parts of the mask are drawn anew


@dataclass(frozen=True)
class Masked:
    """``picture`` (1, 3, H, W) in [-1, 1] with grey where the mask is, and the ``mask`` (1, 1, H, W) of 0 and 1."""

    picture: Float32
    mask: Float32


def check_masked(bundle: Bundle, image: Any, mask_image: Any, width: int, height: int) -> Masked | None:
    """The pictures of a call in the model's terms; None for models that take none.

    Args:
        image, mask_image: see ``pictures``; scaled to the call's size. White in the mask is drawn anew, black is kept.

    Raises:
        ArgumentError: one is missing, is not taken, or is no picture.
        MemoryLimitError: there is no memory for one.
    """
    pictures = {"image": image, "mask_image": mask_image}
    for name, value in pictures.items():
        if value is not None and not bundle.inpaints:
            raise ArgumentError(f"{name} was given, and bundle {bundle.name!r} is no inpainting model")
        if value is None and bundle.inpaints:
            raise ArgumentError(f"bundle {bundle.name!r} is an inpainting model: {name} is missing")
    if not bundle.inpaints:
        return None
    pixels = image_pixels(image, width, height)
    mask = (mask_pixels(mask_image, width, height) >= THRESHOLD).astype(np.float32)[None, None]
    picture = pixels.astype(np.float32).transpose(2, 0, 1)[None] / np.float32(127.5) - 1
    return Masked(picture * (mask < 0.5), mask)


def channels(masked: Masked, latent: Latent, encode: Encode, noise: Callable[[], Float32], count: int) -> Float32:
    """Mask and masked latents (count, 1 + C, h, w), drawn from the encoder's posterior with ``noise``
    (count, C, h, w).
    """
    mean, logvar = encode(masked.picture)
    z = np.repeat(mean, count, axis=0)
    if logvar is not None:
        deviation = np.exp(np.float32(0.5) * np.clip(logvar, -30, 20))
        z = z + deviation * noise()
    z = (z - np.float32(latent.shift)) * np.float32(latent.scale)
    factor = latent.factor
    mask = np.repeat(masked.mask[:, :, ::factor, ::factor], count, axis=0)  # nearest
    out: Float32 = np.concatenate([mask, z], axis=1, dtype=np.float32)
    return out
