"""A text encoder as optimum exports it: ids go in, SDXL's every state comes out. It is traced and proved by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..onnx_graph.binding import binder
from ..onnx_graph.trace import trace
from ..precision.precisions import Case, write_part
from ..sources.base import Source


class OptimumTextEncoder(torch.nn.Module):
    """Gives optimum's outputs in its order: pooled ones, the last state, and all states where they are wanted."""

    def __init__(self, model: Any, outputs: list[str]) -> None:
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(input_ids=input_ids, output_hidden_states=True)
        states = {f"hidden_states.{k}": state for k, state in enumerate(found.hidden_states)}
        return tuple(states[name] if name in states else getattr(found, name) for name in self.outputs)


def write_text_encoder(source: Source, component: str, path: Path, precision: str, length: int, large: bool) -> None:
    """Trace a text encoder, and write it in a precision.

    Args:
        path: of the .onnx file.
        length: of the texts, in tokens.
        large: whether every state comes out, as SDXL needs.

    Raises:
        EngineError: further from torch than the precision may be.
    """
    model = source.reference(component)
    config = model.config
    config._attn_implementation = "eager"
    projected = type(model).__name__.endswith("Projection")
    names = ["text_embeds", "last_hidden_state"] if projected else ["last_hidden_state", "pooler_output"]
    names += [f"hidden_states.{k}" for k in range(config.num_hidden_layers + 1)] if large else []
    module = OptimumTextEncoder(model, names)
    axes = {0: "batch_size", 1: "sequence_length"}
    dynamic = {name: {0: "batch_size"} if name in ("text_embeds", "pooler_output") else axes for name in names}
    ids = _ids(config, 2, length)
    with torch.no_grad():
        answers = dict(zip(names, (t.numpy() for t in module(ids)), strict=True))
    bind = binder(component, source.weights(component))
    graph = trace(module, {"input_ids": _ids(config, 1, length)}, names, dynamic | {"input_ids": axes}, bind)
    cases: list[Case] = [({"input_ids": ids.numpy()}, answers)]
    write_part(component, graph, precision, cases, path)


def _ids(config: Any, batch: int, length: int) -> torch.Tensor:
    """Ids between begin and end, int64 (batch, length)."""
    ids = np.random.default_rng(batch).integers(0, config.vocab_size - 2, (batch, length))
    ids[:, 0], ids[:, length // 2 :] = config.bos_token_id, config.eos_token_id
    return torch.from_numpy(ids.astype(np.int64))
