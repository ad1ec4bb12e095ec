"""Bundles rewired as optimum lays folders out, and the traps of such folders. It needs onnx, and no torch.

``.ci/optimum`` holds folders of the real package against its own pipelines; these show what it does not write.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Edit = Callable[[onnx.ModelProto], None]
MERGES = Path(__file__).parents[1] / "data" / "tiny_merges.txt"
SCHEDULERS: dict[str, dict[str, Any]] = {
    "plms": {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "set_alpha_to_one": False},
    "euler": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
}
CAST = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT, "int32": TensorProto.INT32,
        "int64": TensorProto.INT64}  # fmt: skip


def make_foreign(bundle: Path, out: Path) -> Path:
    """Write a bundle in fp32 as a folder in optimum's layout."""
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    large = manifest["kind"] == "stable-diffusion-xl"
    folders = {name: name for name in manifest["parts"] if name != "preview_decoder"}
    index: dict[str, Any] = {"_class_name": f"StableDiffusion{'XL' * large}Pipeline", "safety_checker": [None, None]}
    for part in folders:
        (out / part).mkdir(parents=True)
        model = onnx.load(str(bundle / manifest["parts"][part]["files"][0]["path"]))
        rewire(model, part, large)
        onnx.save(model, str(out / part / "model.onnx"))
    for k, text in enumerate(manifest["text"]):
        part, tokenizer = ("text_encoder", "tokenizer") if k == 0 else ("text_encoder_2", "tokenizer_2")
        states = {t["name"]: t["shape"] for t in manifest["parts"][part]["outputs"]}
        skips = sum(name.startswith("hidden_state_") for name in states)
        width = states["last_hidden_state"][-1]
        write(out / part / "config.json", {"hidden_size": width, "num_hidden_layers": skips + 2 if large else skips + 1,
                                           "max_position_embeddings": 77, "projection_dim": width})  # fmt: skip
        _write_tokenizer(bundle / text["file"]["path"], out / tokenizer, text["pad_id"])
        index |= {part: ["transformers", "CLIPTextModel"], tokenizer: ["transformers", "CLIPTokenizer"]}
    latent, defaults = manifest["latent"], manifest["defaults"]
    schedule = {k: v for k, v in manifest["schedule"].items() if k not in ("shift", "timestep_spacing")}
    write(out / "scheduler" / "scheduler_config.json", schedule | SCHEDULERS[defaults["sampler"]])
    levels = (latent["size_multiple"] // latent["factor"]).bit_length()
    unet = {"sample_size": defaults["width"] // latent["factor"], "block_out_channels": [8] * levels}
    write(out / "unet" / "config.json", unet | {"addition_embed_type": "text_time" if large else None})
    vae = {"block_out_channels": [8] * latent["factor"].bit_length(), "latent_channels": latent["channels"]}
    for part in ("vae_decoder", "vae_encoder"):
        write(out / part / "config.json", vae | {"scaling_factor": latent["scale"]})
    write(out / "model_index.json", index)
    return out


def write(path: Path, data: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Change settings of a config; None takes one away."""
    data = json.loads(path.read_text(encoding="utf-8")) | changes
    write(path, {key: value for key, value in data.items() if value is not None})


def _write_tokenizer(file: Path, folder: Path, pad: int) -> None:
    """All of a tokenizer's files, as optimum writes them."""
    folder.mkdir()
    shutil.copy(file, folder / "tokenizer.json")
    data = json.loads(file.read_text(encoding="utf-8"))
    words = data["model"]["vocab"]
    write(folder / "vocab.json", words)
    shutil.copy(MERGES, folder / "merges.txt")
    named = next(word for word, k in words.items() if k == pad)
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    write(folder / "special_tokens_map.json", special | {"pad_token": named})
    write(folder / "tokenizer_config.json", {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"})


def rewire(model: onnx.ModelProto, part: str, large: bool) -> None:
    """Give a graph of ours the inputs and outputs that optimum's have."""
    if part == "unet":
        scalar_timestep(model)
    elif part == "vae_encoder":
        join_latents(model)
    elif part.startswith("text_encoder"):
        text_states(model, large)


def named(values: Any, name: str) -> Any:
    return next(v for v in values if v.name == name)


def fresh(model: onnx.ModelProto, name: str, kind: str, shape: list[Any], inner: str = "ours") -> None:
    """Put an input of another type and shape in the place of one of this name; nodes then read ``NAME/inner``."""
    for node in model.graph.node:
        for k, read in enumerate(node.input):
            if read == name:
                node.input[k] = f"{name}/{inner}"
    model.graph.input.remove(named(model.graph.input, name))
    model.graph.input.append(helper.make_tensor_value_info(name, CAST[kind], shape))


def before(model: onnx.ModelProto, *nodes: onnx.NodeProto) -> None:
    for node in reversed(nodes):
        model.graph.node.insert(0, node)


def constant(model: onnx.ModelProto, name: str, values: Any) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return name


def scalar_timestep(model: onnx.ModelProto, kind: str = "float32", shape: tuple[Any, ...] = ()) -> None:
    """One timestep for all images of a call."""
    one = constant(model, "/one", np.array([1], np.int64))
    if "timestep/ours" in {name for node in model.graph.node for name in node.output}:  # made before
        model.graph.input.remove(named(model.graph.input, "timestep"))
        model.graph.input.append(helper.make_tensor_value_info("timestep", CAST[kind], list(shape)))
        del model.graph.initializer[-1]
        model.graph.node[0].CopyFrom(helper.make_node("Cast", ["timestep"], ["/float"], to=TensorProto.FLOAT))
        return
    fresh(model, "timestep", kind, list(shape))
    starts, ends = constant(model, "/zero", np.array([0], np.int64)), one
    before(
        model,
        helper.make_node("Cast", ["timestep"], ["/float"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["/float", one], ["/listed"]),
        helper.make_node("Shape", ["sample"], ["/shape"]),
        helper.make_node("Slice", ["/shape", starts, ends], ["/batch"]),
        helper.make_node("Expand", ["/listed", "/batch"], ["timestep/ours"]),
    )


def join_latents(model: onnx.ModelProto) -> None:
    """Mean and log variance in one tensor."""
    shape = ["batch", "channels", "latent_height", "latent_width"]
    del model.graph.output[:]
    model.graph.node.append(helper.make_node("Concat", ["latent_mean", "latent_logvar"], ["latent_parameters"], axis=1))
    model.graph.output.append(helper.make_tensor_value_info("latent_parameters", TensorProto.FLOAT, shape))


def text_states(model: onnx.ModelProto, large: bool) -> None:
    """Ids alone go in; SDXL's states come by their layers, SD's last one alone."""
    extra = named(model.graph.input, "extra_embeddings")
    width = extra.type.tensor_type.shape.dim[1].dim_value
    model.graph.input.remove(extra)
    constant(model, "extra_embeddings", np.zeros((1, width), np.float32))
    outputs = {o.name: o for o in model.graph.output}
    del model.graph.output[:]
    if not large:
        model.graph.output.append(outputs["last_hidden_state"])
        model.graph.node.append(helper.make_node("ReduceMean", ["last_hidden_state"], ["pooler_output"], keepdims=0))
        model.graph.output.append(helper.make_tensor_value_info("pooler_output", TensorProto.FLOAT, ["batch", width]))
        return
    last = sum(name.startswith("hidden_state_") for name in outputs) + 1
    for old in [name for name in outputs if name != "text_embeds"]:
        skip = 0 if old == "last_hidden_state" else int(old.rpartition("_")[2])
        rename(model, old, f"hidden_states.{last - skip}")
        outputs[old].name = f"hidden_states.{last - skip}"
        model.graph.output.append(outputs[old])
    # The very last state, which SDXL does not read.
    model.graph.node.append(helper.make_node("Neg", [f"hidden_states.{last}"], ["last_hidden_state"]))
    model.graph.output.append(helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, None))
    if "text_embeds" in outputs:
        model.graph.output.append(outputs["text_embeds"])


def rename(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        for names in (node.input, node.output):
            for k, name in enumerate(names):
                if name == old:
                    names[k] = new


def edit_model(root: Path, part: str, edit: Edit) -> Path:
    """Change a part's graph."""
    path = root / part / "model.onnx"
    model = onnx.load(str(path))
    edit(model)
    onnx.save(model, str(path))
    return root


def half_io(model: onnx.ModelProto) -> None:
    """Every float input and output in fp16."""
    for value in list(model.graph.input):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            shape = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
            fresh(model, value.name, "float16", shape, "wide")
            before(model, helper.make_node("Cast", [value.name], [f"{value.name}/wide"], to=TensorProto.FLOAT))
    for value in model.graph.output:
        rename(model, value.name, f"{value.name}/ours")
        model.graph.node.append(helper.make_node("Cast", [f"{value.name}/ours"], [value.name], to=TensorProto.FLOAT16))
        value.type.tensor_type.elem_type = TensorProto.FLOAT16


def narrow_ids(model: onnx.ModelProto) -> None:
    """Token ids in int32."""
    fresh(model, "input_ids", "int32", ["batch", 77])
    before(model, helper.make_node("Cast", ["input_ids"], ["input_ids/ours"], to=TensorProto.INT64))


def fix_sizes(*sizes: int | None) -> Edit:
    """Fix the batch of every input but the timestep, and the sizes of pictures; None leaves one open."""

    def edit(model: onnx.ModelProto) -> None:
        for value in model.graph.input:
            own = sizes if value.name in ("sample", "latent_sample") else sizes[:1]
            for dim, size in zip(value.type.tensor_type.shape.dim, own, strict=False):
                if size is not None and value.name != "timestep":
                    dim.dim_value = size
        for value in model.graph.output:  # the exporter may have named them otherwise
            value.type.tensor_type.shape.dim[0].dim_param = "any"

    return edit


def open_widths(model: onnx.ModelProto) -> None:
    """Name every size, as Olive does."""
    for value in [*model.graph.input, *model.graph.output]:
        for k, dim in enumerate(value.type.tensor_type.shape.dim):
            dim.dim_param = f"{value.name}_{k}" if k else "batch_size"


def custom_operator(name: str, domain: str = "com.microsoft") -> Edit:
    """Name an operator of another domain for the first convolution."""

    def edit(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.op_type == "Conv")
        node.op_type, node.domain = name, domain
        if domain not in {o.domain for o in model.opset_import}:
            model.opset_import.append(helper.make_opsetid(domain, 1))

    return edit


def external(location: str) -> Edit:
    """Say that the largest weight lies in a file of this name."""

    def edit(model: onnx.ModelProto) -> None:
        weight = max(model.graph.initializer, key=lambda t: len(t.raw_data))
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=location)

    return edit
