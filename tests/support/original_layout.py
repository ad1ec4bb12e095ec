"""Writes a diffusers pipeline as one file in the original layout: the names of CompVis, Stability and OpenCLIP."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
HEAD = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
OPENCLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        if name == old or name.startswith(old + "."):
            return new + name[len(old) :]
    return name


def unet_name(name: str, layers: int, attending: Callable[[int], bool]) -> str:
    """``layers`` a block; ``attending(i)``: whether up block i has attention."""
    if (head := _renamed(name, HEAD)) != name:
        return head
    if found := re.fullmatch(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", name):
        i, kind, j, rest = int(found[1]), found[2], int(found[3]), found[4]
        at = (layers + 1) * i + j + 1
        return f"input_blocks.{at}.0.{_renamed(rest, RESNET)}" if kind == "resnets" else f"input_blocks.{at}.1.{rest}"
    if found := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.+)", name):
        return f"input_blocks.{(layers + 1) * (int(found[1]) + 1)}.0.op.{found[2]}"
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
        if found[1] == "attentions":
            return f"middle_block.1.{found[3]}"
        return f"middle_block.{2 * int(found[2])}.{_renamed(found[3], RESNET)}"
    if found := re.fullmatch(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", name):
        i, kind, j, rest = int(found[1]), found[2], int(found[3]), found[4]
        at = (layers + 1) * i + j
        return f"output_blocks.{at}.0.{_renamed(rest, RESNET)}" if kind == "resnets" else f"output_blocks.{at}.1.{rest}"
    found = re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.+)", name)
    assert found, name
    i = int(found[1])
    return f"output_blocks.{(layers + 1) * i + layers}.{2 if attending(i) else 1}.conv.{found[2]}"


def unet(model: Any) -> Tensors:
    config = model.config
    blocks = config.up_block_types

    def attending(i: int) -> bool:
        return "CrossAttn" in blocks[i]

    return {unet_name(k, config.layers_per_block, attending): v for k, v in model.state_dict().items()}


def vae(model: Any) -> Tensors:
    count, out = len(model.config.block_out_channels), {}
    for name, value in model.state_dict().items():
        new = name.replace("conv_norm_out", "norm_out")
        new = new.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        new = new.replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"encoder\.down_blocks\.(\d+)\.resnets", r"encoder.down.\1.block", new)
        new = re.sub(r"encoder\.down_blocks\.(\d+)\.downsamplers\.0", r"encoder.down.\1.downsample", new)
        if found := re.match(r"decoder\.up_blocks\.(\d+)\.(resnets|upsamplers\.0)", new):
            kind = "block" if found[2] == "resnets" else "upsample"
            new = f"decoder.up.{count - 1 - int(found[1])}.{kind}{new[found.end() :]}"
        if found := re.match(r"(.+)\.mid_block\.attentions\.0\.(.+)", new):
            new = f"{found[1]}.mid.attn_1.{_renamed(found[2], VAE_ATTENTION)}"
            value = value[..., None, None] if value.ndim == 2 else value  # linears were 1x1 convolutions
        out[new] = value
    return out


def nested(model: Any) -> Tensors:
    """The weights of a CLIP model under the names of transformers 4, which files in the original layout have."""
    state = model.state_dict()
    return {name if name.startswith("text_") else f"text_model.{name}": value for name, value in state.items()}


def open_clip(model: Any, *, last: bool) -> Tensors:
    """``last``: with one layer more than the model has, as Stable Diffusion 2's files."""
    state, out = nested(model), {}
    for name, value in state.items():
        if name == "text_projection.weight":
            out["text_projection"] = value.T
        elif name.endswith("token_embedding.weight"):
            out["token_embedding.weight"] = value
        elif name.endswith("position_embedding.weight"):
            out["positional_embedding"] = value
        elif "final_layer_norm" in name:
            out[f"ln_final.{name.rsplit('.', 1)[1]}"] = value
        elif found := re.match(r"text_model\.encoder\.layers\.(\d+)\.(.+)", name):
            if "_proj" in found[2] and "out_proj" not in found[2]:
                continue
            out[f"transformer.resblocks.{found[1]}.{_renamed(found[2], OPENCLIP)}"] = value
    count = model.config.num_hidden_layers
    for i in range(count):
        for kind in ("weight", "bias"):
            parts = [state[f"text_model.encoder.layers.{i}.self_attn.{p}_proj.{kind}"] for p in "qkv"]
            out[f"transformer.resblocks.{i}.attn.in_proj_{kind}"] = torch.cat(parts)
    if last:
        mark = f"transformer.resblocks.{count - 1}."
        out |= {k.replace(mark, f"transformer.resblocks.{count}."): -v for k, v in out.items() if k.startswith(mark)}
        out["text_projection"] = torch.eye(model.config.hidden_size)
    out["logit_scale"] = torch.tensor(1.0)
    return out


def original(pipe: Any, family: str) -> Tensors:
    """``family``: sd1, sd2, sdxl, refiner or turbo (Stable Diffusion 2 with SDXL's names)."""
    encoders: dict[str, tuple[str, Tensors]] = {
        "sd1": lambda: {"cond_stage_model.transformer.": nested(pipe.text_encoder)},
        "sd2": lambda: {"cond_stage_model.model.": open_clip(pipe.text_encoder, last=True)},
        "sdxl": lambda: {
            "conditioner.embedders.0.transformer.": nested(pipe.text_encoder),
            "conditioner.embedders.1.model.": open_clip(pipe.text_encoder_2, last=False),
        },
        "refiner": lambda: {"conditioner.embedders.0.model.": open_clip(pipe.text_encoder_2, last=False)},
        "turbo": lambda: {"conditioner.embedders.0.model.": open_clip(pipe.text_encoder, last=True)},
    }[family]()
    parts = {"model.diffusion_model.": unet(pipe.unet), "first_stage_model.": vae(pipe.vae), **encoders}
    out = {prefix + name: value for prefix, tensors in parts.items() for name, value in tensors.items()}
    out["alphas_cumprod"] = torch.linspace(1, 0, 1000)  # files hold more than weights
    return out


def write_original(
    pipe: Any,
    path: Path,
    family: str,
    *,
    dtype: torch.dtype = torch.float32,
    extra: Tensors | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    tensors = {k: v.detach().to(dtype).contiguous().clone() for k, v in original(pipe, family).items()}
    save_file(tensors | (extra or {}), path, metadata)
    return path
