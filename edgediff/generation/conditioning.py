"""What a U-Net is told besides the latents and the time: texts, sizes, a guidance scale.

One frozen value holds it for a whole request. The host loop, the device loop and the choice of an engine all read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32

GUIDANCE_UNIT = 1000.0  # the guidance scale is embedded as timesteps are, in thousandths


@dataclass(frozen=True)
class Condition:
    """A condition is one image's texts and sizes, as one call of the U-Net reads them."""

    hidden: Float32 | None  # (tokens, width)
    pooled: Float32 | None  # (width,)
    time_ids: Float32 | None


@dataclass(frozen=True)
class Group:
    """A group is those images of a batch that one call of the U-Net serves: their texts are of one length.

    Attributes:
        places: where they stand in the batch.
        inputs: what the U-Net is told of them, (n, ...) each.
    """

    places: NDArray[np.intp]
    inputs: Mapping[str, Float32]

    def shapes(self, sample: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The shapes of all inputs of the call; ``sample`` is one image's, (C', h, w)."""
        count = len(self.places)
        others = {name: values.shape for name, values in self.inputs.items()}
        return {"sample": (count, *sample), "timestep": (count,), **others}


@dataclass(frozen=True)
class Conditioning:
    """The conditioning is what the U-Net is told of all images of a request.

    Attributes:
        images: how many there are, B.
        guided: the groups of a call with guidance, a batch of 2*B, the unconditional half first; empty where no row
            is guided.
        unguided: the groups of a call without, a batch of B.
    """

    images: int
    guided: tuple[Group, ...]
    unguided: tuple[Group, ...]

    @property
    def largest(self) -> Group | None:
        """The one group of the largest batch; None where texts differ in length, so that there are several."""
        groups = self.guided or self.unguided
        return groups[0] if len(groups) == 1 else None


def grouped(conditions: Sequence[Condition], guidance: Float32 | None = None) -> tuple[Group, ...]:
    """Conditions with texts of equal length together. Padding one to the length of another would change its picture.

    Args:
        conditions: one an entry of the batch.
        guidance: the embedding of the guidance scale, (width,), for U-Nets that take it.
    """
    lengths = [0 if c.hidden is None else len(c.hidden) for c in conditions]
    out = []
    for length in sorted(set(lengths)):
        places = np.array([k for k, own in enumerate(lengths) if own == length])
        inputs = _stacked([conditions[k] for k in places])
        if guidance is not None:
            inputs["timestep_cond"] = guidance[None].repeat(len(places), 0)
        out.append(Group(places, inputs))
    return tuple(out)


def _stacked(conditions: Sequence[Condition]) -> dict[str, Float32]:
    arrays = {
        "encoder_hidden_states": [c.hidden for c in conditions],
        "text_embeds": [c.pooled for c in conditions],
        "time_ids": [c.time_ids for c in conditions],
    }
    return {name: np.stack([v for v in some if v is not None]) for name, some in arrays.items() if some[0] is not None}


def embed_guidance(scale: float, width: int) -> Float32:
    """``timestep_cond`` (width,) of a guidance scale: sines and cosines of its excess over 1 (Luo et al. 2023,
    https://arxiv.org/abs/2310.04378; the positional encoding of Vaswani et al. 2017, frequencies 1 .. 1/10000).
    """
    half = width // 2
    frequencies = np.exp(np.arange(half, dtype=np.float32) * -(np.log(np.float32(10000)) / np.float32(half - 1)))
    angles = np.float32((scale - 1) * GUIDANCE_UNIT) * frequencies
    out: Float32 = np.concatenate([np.sin(angles), np.cos(angles), np.zeros(width % 2, np.float32)])
    return out.astype(np.float32)
