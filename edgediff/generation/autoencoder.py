"""Between pixels and latents: encoding, decoding, and previews that cost less than decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32, require_finite
from ..checks import one_of
from ..engines.choose import Parts
from ..errors import ArgumentError
from ..image import to_uint8

PreviewMethod = Literal["decoder", "matrix"]
PREVIEWS: tuple[str, ...] = get_args(PreviewMethod)


@dataclass(frozen=True)
class Autoencoder:
    """The encoder and decoders of a bundle, by the engines that a request began with."""

    parts: Parts

    def encode(self, picture: Float32) -> tuple[Float32, Float32 | None]:
        """Pictures (B, 3, H, W) in [-1, 1] -> mean and log variance of their latents (B, C, h, w), unscaled; the second
        is None for encoders without spread.
        """
        out = self.parts.run("vae_encoder", sample=picture)
        for name in out:
            require_finite("vae_encoder", out[name])
        return out["latent_mean"], out.get("latent_logvar")

    def decode(self, latents: Float32, part: str = "vae_decoder") -> Float32:
        """Latents (B, C, h, w) -> pictures (B, 3, H, W), nominally in [-1, 1]."""
        latent = self.parts.bundle.latent
        if latent.factor == 1:
            return latents  # they are pixels
        z = latents / np.float32(latent.scale) + np.float32(latent.shift)
        out = self.parts.run(part, latent_sample=z)["sample"]
        require_finite(part, out)
        return out

    def preview(self, x0: Float32, how: PreviewMethod | None = None) -> NDArray[np.uint8]:
        """x0 -> uint8 (B, H, W, 3) by the bundle's tiny decoder, or by its linear fit, enlarged to the picture's size
        without smoothing.

        Raises:
            ArgumentError: the bundle has no such preview.
        """
        bundle = self.parts.bundle
        if how is not None:
            one_of("preview", how, PREVIEWS)
        small = "preview_decoder" in bundle.parts
        if how == "decoder" and not small:
            raise ArgumentError(f"bundle {bundle.name!r} has no preview_decoder; use matrix, or step.decode()")
        if bundle.latent.factor == 1 or (small and how != "matrix"):
            return to_uint8(self.decode(x0, "preview_decoder"))
        fit = bundle.preview
        if fit is None:
            raise ArgumentError(f"bundle {bundle.name!r} has no preview matrix; use step.decode()")
        rgb = np.einsum("bchw,ck->bkhw", x0, np.asarray(fit.weight, np.float32))
        rgb += np.asarray(fit.bias, np.float32)[:, None, None]
        factor = bundle.latent.factor
        return to_uint8(rgb).repeat(factor, axis=1).repeat(factor, axis=2)
