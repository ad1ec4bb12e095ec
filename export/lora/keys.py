"""A key of a LoRA file means a component, a layer and a tensor, in the spellings of kohya, LyCORIS and PEFT."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

# Endings of keys, by the tensor that they hold; a longer ending comes before one that ends it.
ENDINGS: dict[str, str] = {
    **{f"lora_{name}.weight": name for name in ("down", "up", "mid")},
    **{f"{name}.weight": name for name in ("down", "up")},
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    **{f"hada_{name}": f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{name}": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    "diff": "diff",
    "diff_b": "diff_b",
    "w_norm": "diff",  # LyCORIS trains norms as plain differences
    "b_norm": "diff_b",
    "alpha": "alpha",
    "dora_scale": "dora_scale",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
# Beginnings of keys, by component. SDXL's trainers number the text encoders.
BEGINNINGS: dict[str, str] = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lycoris_": "unet",
    "unet.": "unet",
    "diffusion_model.": "unet",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_model.": "text_encoder",
    "encoder.layers.": "text_encoder",
}
OF_MODULE = ("text_model.", "encoder.layers.")  # beginnings that belong to the layer's own name
INNER = "text_model_"  # the inner module of a text encoder: transformers 5 took it out of CLIPTextModel
# Algorithms that are known and not merged, by a part of their keys.
UNSUPPORTED: dict[str, str] = {
    "oft_": "OFT",
    ".on_input": "IA3",
    ".ia3_l": "IA3",
    ".a1.weight": "GLoRA",
    ".b1.weight": "GLoRA",
    "lora_embedding_": "LoRA of an embedding",
    "bundle_emb": "textual inversion inside a LoRA",
    "lora_controlnet": "Control-LoRA",
}
# The original (SGM) names of layers, by diffusers': inside a block by its kind, and outside.
INSIDE_BLOCKS: dict[str, dict[str, str]] = {
    "resnets": {
        "norm1": "in_layers_0",
        "conv1": "in_layers_2",
        "time_emb_proj": "emb_layers_1",
        "norm2": "out_layers_0",
        "conv2": "out_layers_3",
        "conv_shortcut": "skip_connection",
    },
    "downsamplers": {"conv": "op"},
}
OUTSIDE_BLOCKS = {
    "conv_in": "input_blocks_0_0",
    "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2",
    "add_embedding_linear_1": "label_emb_0_0",
    "add_embedding_linear_2": "label_emb_0_2",
    "conv_norm_out": "out_0",
    "conv_out": "out_2",
}


class Key(NamedTuple):
    """A key names one tensor of one layer of a component."""

    component: str
    layer: str  # the path of the module with _ for .
    tensor: str  # one of the values of ENDINGS


def parse_key(key: str) -> Key | None:
    """Tell what a key of a file means; None where its ending is not one of LoRA's."""
    ending = next((e for e in ENDINGS if key.endswith(f".{e}")), None)
    if ending is None:
        return None
    stem = key.removesuffix(f".{ending}").removeprefix("base_model.model.")
    begins = next((b for b in BEGINNINGS if stem.startswith(b)), None)
    component = BEGINNINGS[begins] if begins else "unet"
    if begins and begins not in OF_MODULE:
        stem = stem.removeprefix(begins)
    # diffusers' older spellings: attn1.processor.to_q_lora, to_q.lora, q_proj.lora_linear_layer
    layer = re.sub(r"(\.lora|\.lora_linear_layer|_lora)$", "", stem.replace(".processor.", ".")).replace(".", "_")
    layer = re.sub(r"self_attn_to_(q|k|v|out)$", r"self_attn_\1_proj", layer)
    layer = re.sub(r"_to_out$", "_to_out_0", layer)
    return Key(component, layer, ENDINGS[ending])


def unsupported_algorithm(key: str) -> str | None:
    """Name the algorithm that a key is of, where it is one that cannot be merged."""
    return next((name for part, name in UNSUPPORTED.items() if part in key), None)


def layer_paths(module: Any) -> dict[str, str]:
    """Map every name that a file may give a layer of ``module`` to the layer's path in it."""
    layers = (path for path, layer in module.named_modules() if getattr(layer, "weight", None) is not None)
    known = {path.replace(".", "_"): path for path in layers}
    if any(name.removeprefix(INNER).startswith("encoder_layers_") for name in known):
        bare = {name.removeprefix(INNER): path for name, path in known.items()}
        known |= bare | {INNER + name: path for name, path in bare.items()}
    if hasattr(module, "down_blocks"):
        original = {sgm: known[name] for name, sgm in OUTSIDE_BLOCKS.items() if name in known}
        for begins, sgm in _blocks(module):
            inside = next((names for kind, names in INSIDE_BLOCKS.items() if f"_{kind}_" in begins), {})
            for name, path in known.items():
                inner = name.removeprefix(f"{begins}_")
                if inner != name:
                    original[f"{sgm}_{inside.get(inner, inner)}"] = path
        known |= original
    return known


def _blocks(unet: Any) -> Iterator[tuple[str, str]]:
    """Yield (diffusers' beginning, SGM's) of every block of a U-Net.

    SGM numbers the steps of the way down and of the way up; a step is a residual block (0), then perhaps attention (1)
    and, at the end of a level on the way up, the upsampler. A downsampler is a step of its own.
    """
    step = 0
    for level, block in enumerate(unet.down_blocks):
        for i in range(len(block.resnets)):
            step += 1
            yield f"down_blocks_{level}_resnets_{i}", f"input_blocks_{step}_0"
            yield f"down_blocks_{level}_attentions_{i}", f"input_blocks_{step}_1"
        if block.downsamplers is not None:
            step += 1
            yield f"down_blocks_{level}_downsamplers_0", f"input_blocks_{step}_0"
    for name, i in (("resnets_0", 0), ("attentions_0", 1), ("resnets_1", 2)):
        yield f"mid_block_{name}", f"middle_block_{i}"
    step = 0
    for level, block in enumerate(unet.up_blocks):
        attends = bool(getattr(block, "attentions", None))
        for i in range(len(block.resnets)):
            yield f"up_blocks_{level}_resnets_{i}", f"output_blocks_{step}_0"
            yield f"up_blocks_{level}_attentions_{i}", f"output_blocks_{step}_1"
            step += 1
        if block.upsamplers is not None:
            yield f"up_blocks_{level}_upsamplers_0", f"output_blocks_{step - 1}_{1 + attends}"
