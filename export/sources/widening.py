"""Weights that are stored in half precision compute in float32: each is widened while its layer runs."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

HALF = {torch.float16, torch.bfloat16}


def compute_wide(model: Any) -> Any:
    """Let a module with half-precision weights compute in float32, a layer at a time; its memory stays the file's.

    Widening is exact, so the outputs are those of the module in float32, to the bit.
    """
    narrow = False
    for module in model.modules():
        own = [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]
        held = [(t, t.data) for t in own if t.dtype in HALF]
        if held:
            narrow = True
            module.register_forward_pre_hook(partial(_widen, held))
            module.register_forward_hook(partial(_restore, held), always_call=True)
    if narrow:
        # Pipelines cast what they feed a model to its dtype, which is that of its first weight.
        cls = type(model)
        model.__class__ = type(cls.__name__, (cls,), {"dtype": torch.float32, "__module__": cls.__module__})
    return model


def _widen(held: list[tuple[Any, torch.Tensor]], *_: Any) -> None:
    for tensor, narrow in held:
        tensor.data = narrow.float()


def _restore(held: list[tuple[Any, torch.Tensor]], *_: Any) -> None:
    for tensor, narrow in held:
        tensor.data = narrow
