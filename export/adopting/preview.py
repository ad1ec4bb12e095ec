"""The preview matrix of a folder without torch: the same fit as an export's, by the folder's own encoder."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgediff.generation.autoencoder import Autoencoder

COUNT, COARSE = 16, 4  # pictures, and the colours a side of each


def fit_preview(autoencoder: Autoencoder, width: int, height: int) -> dict[str, Any]:
    """Fit ``rgb = (scaled latent) @ weight + bias`` on smooth random fields of colour.

    Args:
        autoencoder: whose encoder is asked.
        width, height: of the pictures, in pixels.

    Returns:
        ``weight`` (channels x 3), ``bias`` (3) and ``r2``, the share of variance explained.
    """
    random, latent = np.random.default_rng(0), autoencoder.parts.bundle.latent
    latents, colours = [], []
    for _ in range(COUNT):
        picture = _smooth(random.uniform(-1, 1, (3, COARSE, COARSE)), height, width).astype(np.float32)[None]
        mean, _ = autoencoder.encode(picture)
        latents.append((mean - latent.shift) * latent.scale)
        cells = picture.reshape(1, 3, height // latent.factor, latent.factor, width // latent.factor, latent.factor)
        colours.append(cells.mean(axis=(3, 5)))
    x, y = (np.moveaxis(np.concatenate(some), 1, -1).reshape(-1, some[0].shape[1]) for some in (latents, colours))
    design = np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(np.float64)
    solution = np.linalg.lstsq(design, y.astype(np.float64), rcond=None)[0]
    residual = y - design @ solution
    r2 = 1 - residual.var() / max(y.var(), 1e-12)
    rows: list[list[float]] = np.round(solution, 6).tolist()
    return {"weight": rows[:-1], "bias": rows[-1], "r2": round(float(r2), 4)}


def _smooth(field: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Enlarge a field (C, n, n) by straight lines between its values."""
    for axis, size in ((1, height), (2, width)):
        count = field.shape[axis]
        at = np.linspace(0, count - 1, size)
        low = np.minimum(at.astype(int), count - 2)
        share = (at - low).reshape([-1 if k == axis else 1 for k in range(3)])
        field = field.take(low, axis) * (1 - share) + field.take(low + 1, axis) * share
    return field
