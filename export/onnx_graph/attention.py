"""Attention is one node, ``com.microsoft.MultiHeadAttention``, or the same written plainly.

One node lets ONNX Runtime work in blocks and never hold the (tokens x tokens) scores, which at 512x512 are most of a
U-Net's memory. TensorRT fuses the plain form MatMul -> Softmax -> MatMul by itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention
from onnx import helper

from ..weight import Weight
from .graph import Graph

FUSED, DOMAIN = "MultiHeadAttention", "com.microsoft"
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


def plain(graph: Graph) -> Graph:
    """Copy the graph with every fused node written as MatMul -> Softmax -> MatMul on (batch, heads, tokens, width).

    The scale goes to the query. The new nodes' names begin with the fused one's.
    """
    out = graph.copy()
    nodes = []
    for node in out.nodes:
        nodes += _written_out(node, out.weights) if node.op_type == FUSED else [node]
    out.replace_nodes(nodes)
    kept = [o for o in out.model.opset_import if o.domain != DOMAIN or any(n.domain == DOMAIN for n in nodes)]
    del out.model.opset_import[:]
    out.model.opset_import.extend(kept)
    return out


def _written_out(node: onnx.NodeProto, weights: dict[str, Weight]) -> list[onnx.NodeProto]:
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    name = node.name
    made: list[onnx.NodeProto] = []

    def op(kind: str, label: str, *inputs: str, **more: Any) -> str:
        output = f"{name}/{label}"
        made.append(helper.make_node(kind, list(inputs), [output], name=output, **more))
        return output

    def constant(label: str, value: Any) -> str:
        weights[f"{name}/{label}"] = Weight.of(np.asarray(value))
        return f"{name}/{label}"

    split = constant("split", np.array([0, 0, attributes["num_heads"], -1], np.int64))
    heads = [op("Reshape", f"{label}_heads", tensor, split) for label, tensor in zip("qkv", node.input, strict=False)]
    q = op("Transpose", "q", heads[0], perm=[0, 2, 1, 3])
    k = op("Transpose", "k", heads[1], perm=[0, 2, 3, 1])
    v = op("Transpose", "v", heads[2], perm=[0, 2, 1, 3])
    scaled = op("Mul", "q_scaled", q, constant("scale", np.array(attributes["scale"], np.float32)))
    weighed = op("Softmax", "softmax", op("MatMul", "scores", scaled, k), axis=-1)
    merged = op("Transpose", "merged", op("MatMul", "values", weighed, v), perm=[0, 2, 1, 3])
    join = constant("join", np.array([0, 0, -1], np.int64))
    made.append(helper.make_node("Reshape", [merged, join], [node.output[0]], name=f"{name}/out"))
    return made
