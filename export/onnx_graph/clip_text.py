"""CLIP's text encoder: the layers of transformers' module, in a forward pass of our own.

transformers writes its pass anew from release to release (masks, attention, hooks), and a trace follows it. The layers
have stayed what they are, so this pass gives the same graph with every release.
"""

from __future__ import annotations

from typing import Any

import torch

# Where the component has what this pass has at its top, by release.
INSIDE = ("", *(inner + part for inner in ("text_model.", "") for part in ("", "encoder.", "embeddings.")))
NEVER = -1e4  # added to the score of a later word; fp16 holds it, and exp() of it is 0
OLD_END = 2  # configs from before transformers 4.31 name it as the end; the end is then the token of the highest id


class Layer(torch.nn.Module):
    """One transformer layer: (batch, length, width) in and out."""

    def __init__(self, layer: Any, heads: int) -> None:
        super().__init__()
        self.layer_norm1, self.self_attn = layer.layer_norm1, layer.self_attn
        self.layer_norm2, self.mlp = layer.layer_norm2, layer.mlp
        self.heads = heads

    def forward(self, state: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        state = state + self._attend(self.layer_norm1(state), mask)
        out: torch.Tensor = state + self.mlp(self.layer_norm2(state))
        return out

    def _attend(self, state: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        own, length, width = self.self_attn, mask.shape[0], self.self_attn.out_proj.out_features
        size = width // self.heads
        q, k, v = (
            project(state).view(-1, length, self.heads, size).transpose(1, 2)
            for project in (own.q_proj, own.k_proj, own.v_proj)
        )
        shares = torch.softmax((q * size**-0.5) @ k.transpose(-1, -2) + mask, -1)
        out: torch.Tensor = own.out_proj((shares @ v).transpose(1, 2).reshape(-1, length, width))
        return out


class TextEncoder(torch.nn.Module):
    """Gives the state that clip_skip 0 reads, those of clip_skip 1 .. ``skips``, and the pooled one where asked for.

    Stable Diffusion reads the last state, and earlier ones through the final norm as diffusers does; SDXL
    (``large``) counts from the last but one, without the norm. Ids below 0 read vectors of textual inversions: -1 is
    row 0 of ``extra_embeddings``.
    """

    def __init__(self, model: Any, length: int, skips: int, large: bool, pooled: bool) -> None:
        super().__init__()
        text = getattr(model, "text_model", model)  # transformers 5 nests only the model with a projection
        self.token_embedding = text.embeddings.token_embedding
        self.position_embedding = text.embeddings.position_embedding
        heads = model.config.num_attention_heads
        self.layers = torch.nn.ModuleList(Layer(layer, heads) for layer in text.encoder.layers)
        self.final_layer_norm = text.final_layer_norm
        self.text_projection = model.text_projection if pooled else None
        self.register_buffer("mask", torch.full((length, length), NEVER).triu(1))
        self.skips, self.large, self.end = skips, large, model.config.eos_token_id

    def forward(self, input_ids: torch.Tensor, extra_embeddings: torch.Tensor) -> tuple[torch.Tensor, ...]:
        length, positions = len(self.mask), self.position_embedding.weight
        positions = positions if len(positions) == length else positions[:length]
        states = [self._words(input_ids, extra_embeddings) + positions]
        for layer in self.layers:
            states.append(layer(states[-1], self.mask))
        norm = self.final_layer_norm
        last = norm(states[-1])
        if self.large:
            out = [states[-2 - k] for k in range(self.skips + 1)]
        else:
            out = [last, *(norm(states[-1 - k]) for k in range(1, self.skips + 1))]
        return tuple(out) if self.text_projection is None else (*out, self.text_projection(self._pool(input_ids, last)))

    def _words(self, ids: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
        zero = ids.new_zeros(())  # maximum, not clamp: TensorRT is documented to clip floats alone
        known = self.token_embedding(torch.maximum(ids, zero))
        return torch.where(ids.unsqueeze(-1) < 0, extra[torch.maximum(-1 - ids, zero)], known)

    def _pool(self, ids: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Pick the state of the first end token."""
        ids = ids.int()  # ArgMax takes no int64
        ends = ids if self.end == OLD_END else (ids == self.end).int()
        return last[torch.arange(last.shape[0]), ends.argmax(-1)]
