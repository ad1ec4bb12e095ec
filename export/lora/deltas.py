"""The tensors of one LoRA layer stand for the change of a weight: LoRA, LoCon, LoHa, LoKr, differences, DoRA.

Tensors are float32 and go by the names of ``keys.ENDINGS``; on the meta device only shapes are worked out.
Sources: LoRA arXiv:2106.09685; LoCon, LoHa, LoKr and Tucker forms arXiv:2309.14859 and LyCORIS' ``functional``;
DoRA arXiv:2402.09353.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


def _low_rank(t: Tensors) -> tuple[Tensor, int]:
    down, up = t["down"], t["up"].flatten(1)
    if "mid" in t:
        return _tucker(t["mid"], up.T, down.flatten(1)), down.shape[0]
    return (up @ down.flatten(1)).reshape(up.shape[0], *down.shape[1:]), down.shape[0]


def _hadamard(t: Tensors) -> tuple[Tensor, int]:
    halves = [
        _tucker(t[f"hada_t{i}"], t[f"hada_w{i}_a"], t[f"hada_w{i}_b"])
        if f"hada_t{i}" in t
        else t[f"hada_w{i}_a"] @ t[f"hada_w{i}_b"]
        for i in (1, 2)
    ]
    return halves[0] * halves[1], t["hada_w1_b"].shape[0]


def _kronecker(t: Tensors) -> tuple[Tensor, int | None]:
    left = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
    if "lokr_w2" in t:
        right = t["lokr_w2"]
    elif "lokr_t2" in t:
        right = _tucker(t["lokr_t2"], t["lokr_w2_a"], t["lokr_w2_b"])
    else:
        right = (t["lokr_w2_a"] @ t["lokr_w2_b"].flatten(1)).reshape(-1, *t["lokr_w2_b"].shape[1:])
    rank = next((t[name].shape[0] for name in ("lokr_w1_b", "lokr_w2_b") if name in t), None)
    return torch.kron(left.reshape(*left.shape, *[1] * (right.ndim - 2)), right.contiguous()), rank


def _difference(t: Tensors) -> tuple[Tensor, None]:
    return t["diff"], None


def _tucker(core: Tensor, out: Tensor, into: Tensor) -> Tensor:
    """Multiply a core (R, R, kh, kw) by factors (R, out) and (R, in); give (out, in, kh, kw)."""
    return torch.einsum("ij...,ip,jr->pr...", core, out, into)


def _names(algorithm: str, names: str) -> frozenset[str]:
    return frozenset(f"{algorithm}_{name}" for name in names.split())


# Every set of tensors that changes a weight, with its formula: unscaled delta and rank (None: alpha has no meaning).
FORMULAS: dict[frozenset[str], Callable[[Tensors], tuple[Tensor, int | None]]] = {
    frozenset({"down", "up"}): _low_rank,
    frozenset({"down", "up", "mid"}): _low_rank,
    _names("hada", "w1_a w1_b w2_a w2_b"): _hadamard,
    _names("hada", "w1_a w1_b w2_a w2_b t1 t2"): _hadamard,
    **{
        _names("lokr", f"{left} {right}"): _kronecker
        for left in ("w1", "w1_a w1_b")
        for right in ("w2", "w2_a w2_b", "w2_a w2_b t2")
    },
    frozenset({"diff"}): _difference,
}
# Tensors that go with those above.
BESIDE = frozenset({"alpha", "dora_scale", "magnitude", "diff_b"})


def delta(tensors: Tensors, scale: Callable[[int], float], weight: Tensor, strength: float = 1.0) -> Tensor:
    """Work out the change of ``weight`` (float32, same shape) by a LoRA of weight ``strength``.

    ``scale`` gives the factor at a rank. With DoRA the change is that from ``weight`` to the rescaled sum, and the
    LoRA's weight counts inside the sum, as in PEFT: the lengths stay those of the file, so a weight of 0 is a change.

    Raises:
        ValueError, RuntimeError: tensors that fit neither each other nor ``weight``.
    """
    names = frozenset(tensors) - BESIDE
    change, rank = FORMULAS[names](tensors)
    if rank == 0:
        raise ValueError("its rank is 0, so that it changes nothing")
    if rank is not None:
        change = change * scale(rank)
    change = strength * reshaped_to(change, weight)
    if "magnitude" in tensors:  # PEFT: one number per output
        return _decomposed(weight, change, tensors["magnitude"].reshape(-1, *[1] * (weight.ndim - 1)))
    if "dora_scale" in tensors:  # LyCORIS: (out, 1, ..), in its first releases (1, in, ..)
        return _decomposed(weight, change, tensors["dora_scale"])
    return change


def reshaped_to(change: Tensor, weight: Tensor) -> Tensor:
    """Give ``change`` the shape of ``weight``: a 1x1 convolution is a linear layer, LyCORIS flattens kernels.

    Raises:
        ValueError: names both shapes.
    """
    flat = change.shape == change.shape[:2] or all(size == 1 for size in change.shape[2:])
    same = change.ndim > 1 < weight.ndim and change.flatten(1).shape == weight.flatten(1).shape
    if change.shape != weight.shape and not (flat and same):
        raise ValueError(f"it changes a weight of {tuple(change.shape)}, the model's is {tuple(weight.shape)}")
    return change.reshape(weight.shape)


def _decomposed(weight: Tensor, change: Tensor, magnitude: Tensor) -> Tensor:
    """Apply equation 5 of DoRA: the sum gives the direction, ``magnitude`` the lengths, along outputs or inputs."""
    ones = [1] * (weight.ndim - 1)
    if magnitude.shape[0] == weight.shape[0]:
        axis, magnitude = 0, magnitude.reshape(-1, *ones)
    else:
        axis, magnitude = 1, magnitude.reshape(1, -1, *ones[1:])
    if magnitude.shape[axis] != weight.shape[axis]:
        raise ValueError(f"it has {magnitude.numel()} magnitudes, the model's weight is {tuple(weight.shape)}")
    merged = weight + change
    others = [d for d in range(weight.ndim) if d != axis]
    return magnitude * merged / torch.linalg.vector_norm(merged, dim=others, keepdim=True) - weight
