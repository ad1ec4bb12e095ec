"""Attention traces as one node, ``com.microsoft.MultiHeadAttention``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention

from .fused_node import DOMAIN, FUSED

HALVES = ("value", "gate")  # of a GEGLU's product, in the order of its rows


class _MultiHeadAttention(torch.autograd.Function):
    """Computes softmax(q k' scale) v over ``heads`` (Vaswani et al. 2017); tensors: (batch, tokens, heads * width)."""

    @staticmethod
    def forward(
        context: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int, scale: float
    ) -> torch.Tensor:
        q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (query, key, value))
        out = F.scaled_dot_product_attention(q, k, v, scale=scale)
        return out.transpose(1, 2).flatten(2)

    @staticmethod
    def symbolic(graph: Any, query: Any, key: Any, value: Any, heads: int, scale: float) -> Any:
        out = graph.op(f"{DOMAIN}::{FUSED}", query, key, value, num_heads_i=heads, scale_f=scale)
        return out.setType(query.type())


class SplitGeglu(torch.nn.Module):
    """Computes a * gelu(b) (Shazeer 2020, https://arxiv.org/abs/2002.05202) with a and b each a product of its own.

    Cutting one product in two would copy it. The weights are views of the original's.
    """

    def __init__(self, geglu: GEGLU) -> None:
        super().__init__()
        for name, weight, bias in zip(HALVES, geglu.proj.weight.chunk(2), geglu.proj.bias.chunk(2), strict=True):
            linear = torch.nn.Linear(1, 1, device="meta")
            linear.weight, linear.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
            self.add_module(name, linear)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.value(hidden_states) * F.gelu(self.gate(hidden_states))
        return out


class FusedAttention:
    """A diffusers attention processor that traces to one node. It does what AttnProcessor2_0 does without masks."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if attention_mask is not None or attn.spatial_norm is not None or attn.added_kv_proj_dim is not None:
            raise NotImplementedError("attention with a mask, a spatial norm or added keys")
        residual = x = hidden_states
        if hidden_states.ndim == 4:
            x = x.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
        context = x if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        q, k, v = attn.to_q(x), attn.to_k(context), attn.to_v(context)
        out: torch.Tensor = _MultiHeadAttention.apply(q, k, v, attn.heads, float(attn.scale))
        out = attn.to_out[0](out)
        if residual.ndim == 4:
            out = out.transpose(1, 2).reshape(residual.shape)
        if attn.residual_connection:
            out = out + residual
        if attn.rescale_output_factor != 1:
            out = out / attn.rescale_output_factor
        return out


def has_fused(module: torch.nn.Module) -> bool:
    """Whether tracing the module gives a fused node."""
    return any(isinstance(getattr(m, "processor", None), FusedAttention) for m in module.modules())


def use_fused(model: Any) -> Any:
    """Change the diffusers module so that every attention traces as one node, and no product is cut in two."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.set_processor(FusedAttention())
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, GEGLU):
                setattr(module, name, SplitGeglu(child))
    return model
