"""The U-Net as a function of state and time, which is all that the host loop asks of a model."""

from __future__ import annotations

import numpy as np

from ..arrays import Float32
from ..engines.base import Engine
from ..engines.choose import Parts
from ..engines.tensors import Form, forms, run_part
from ..sampling.loop import Denoise
from .conditioning import Conditioning, Group


def denoiser(
    conditioning: Conditioning, parts: Parts, shape: tuple[int, ...], rows: set[bool], extra: Float32 | None
) -> Denoise:
    """The U-Net on a request's prompts, by engines that are chosen here, once.

    Texts of several lengths go in several calls.

    Args:
        conditioning: what the U-Net is told of every image.
        parts: the engines.
        shape: of one image's sample, (C', h, w).
        rows: whether rows are guided, for the kinds of rows that there are.
        extra: further channels beside each image's latents, (B, C' - C, h, w).
    """
    grouped = {guided: conditioning.guided if guided else conditioning.unguided for guided in rows}
    engines: dict[bool, list[tuple[Group, Engine, dict[str, Form]]]] = {guided: [] for guided in rows}
    for guided, groups in grouped.items():
        for group in groups:
            shapes = group.shapes(shape)
            engines[guided].append((group, parts.pick("unet", shapes), forms(parts.bundle, "unet", shapes)))

    def denoise(x: Float32, t: float, guided: bool) -> tuple[Float32 | None, Float32]:
        sample = x if extra is None else np.concatenate([x, extra], axis=1)
        sample = np.concatenate([sample, sample]) if guided else sample
        out: Float32 | None = None
        for group, engine, wanted in engines[guided]:
            places, every = group.places, len(group.places) == len(sample)
            inputs = {
                "sample": sample if every else sample[places],
                "timestep": np.full(len(places), t, np.float32),
                **group.inputs,
            }
            part = run_part("unet", engine, inputs, wanted)["out_sample"]
            if every:
                out = part
            else:
                out = np.empty((len(sample), *x.shape[1:]), np.float32) if out is None else out
                out[places] = part
        assert out is not None  # a request has at least one prompt
        return (out[: len(x)], out[len(x) :]) if guided else (None, out)

    return denoise
