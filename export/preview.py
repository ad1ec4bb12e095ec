"""The preview matrix is a least-squares fit from latents to the pictures they decode to, one colour a latent cell."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .onnx_graph.modules import VaeEncoder


@torch.no_grad()
def fit_preview(vae: Any, factor: int, size: int, pictures: torch.Tensor | None) -> dict[str, Any]:
    """Fit ``rgb = (scaled latent) @ weight + bias`` with rgb in [-1, 1].

    Args:
        vae: an AutoencoderKL or AutoencoderTiny.
        factor: pixels a side of a latent cell.
        size: side of the synthetic pictures.
        pictures: float32 (N, 3, H, W) in [-1, 1], typical of the model; smooth random colour fields when None.

    Returns:
        ``weight`` (channels x 3), ``bias`` (3) and ``r2``, the share of variance explained.
    """
    if pictures is None:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(16, 3, 4, 4, generator=generator) * 2 - 1
        pictures = F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(-1, 1)
    latents = torch.cat([VaeEncoder(vae)(p[None])[0] for p in pictures])
    latents = (latents - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor
    x = latents.movedim(1, -1).reshape(-1, latents.shape[1]).double().numpy()
    y = F.avg_pool2d(pictures, factor).movedim(1, -1).reshape(-1, 3).double().numpy()
    design = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    solution = np.linalg.lstsq(design, y, rcond=None)[0]
    residual = y - design @ solution
    r2 = 1 - residual.var() / max(y.var(), 1e-12)
    rows: list[list[float]] = np.asarray(np.round(solution, 6)).tolist()
    return {"weight": rows[:-1], "bias": rows[-1], "r2": round(float(r2), 4)}
