"""LoRA files merged at export, held against diffusers' own loading and fusing and against closed forms in NumPy."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import _convert_unet_lora_key, _maybe_map_sgm_blocks_to_diffusers
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from edgediff import ArgumentError, BundleError, BundleNotFoundError
from edgediff_export.lora.file import read_lora
from edgediff_export.lora.keys import layer_paths, parse_key
from edgediff_export.lora.merging import check, merge, merged_weights
from edgediff_export.sources.open import open_source

Tensors = dict[str, torch.Tensor]


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.2


def layers(module: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            yield path, layer


def low_rank(layer: nn.Linear | nn.Conv2d, rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(down, up) that change a layer, as kohya's scripts shape them."""
    out, into, *kernel = layer.weight.shape
    return normal(seed, rank, into, *kernel), normal(seed + 1, out, rank, *[1] * len(kernel))


def kohya(module: nn.Module, prefix: str, name: Callable[[str], str] = str, rank: int = 3, alpha: float = 2) -> Tensors:
    """A kohya file's keys for every linear layer and convolution of a module."""
    found: Tensors = {}
    for seed, (path, layer) in enumerate(layers(module)):
        down, up = low_rank(layer, rank, 2 * seed)
        stem = prefix + name(path.replace(".", "_"))
        found |= {
            f"{stem}.lora_down.weight": down,
            f"{stem}.lora_up.weight": up,
            f"{stem}.alpha": torch.tensor(float(alpha)),
        }
    return found


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def fused(pipe: Any, file: Path, weight: float) -> dict[str, Tensors]:
    """The weights of every component after diffusers has merged the file."""
    pipe = copy.deepcopy(pipe)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    components = [c for c in ("unet", "text_encoder", "text_encoder_2") if getattr(pipe, c, None) is not None]
    pipe.fuse_lora(components=components, lora_scale=weight)
    pipe.unload_lora_weights()
    return {component: getattr(pipe, component).state_dict() for component in components}


def assert_equal_to_diffusers(pipe: Any, file: Path, weight: float, changed: Mapping[str, int]) -> None:
    expected = fused(pipe, file, weight)
    loras = [read_lora(file, weight)]
    check(loras, {component: getattr(pipe, component) for component in expected})
    for component, weights in expected.items():
        module = copy.deepcopy(getattr(pipe, component))
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        assert merge(loras, component, module) == changed.get(component, 0)
        for name, tensor in module.state_dict().items():
            torch.testing.assert_close(tensor, weights[name], rtol=0, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
        moved = [n for n, t in module.state_dict().items() if (t - before[n]).abs().max() > 1e-2]
        assert len(moved) == changed.get(component, 0)


@pytest.fixture(scope="module")
def sd(tiny_source: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(tiny_source)


@pytest.fixture(scope="module")
def xl(sd: StableDiffusionPipeline) -> StableDiffusionXLPipeline:
    """Every kind of block of SDXL, in its order, at toy width."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    text = CLIPTextConfig(**{**sd.text_encoder.config.to_dict(), "projection_dim": 32})
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32, 64),
        transformer_layers_per_block=(1, 1, 2),
        layers_per_block=2,
        attention_head_dim=(2, 4, 8),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
        cross_attention_dim=64,
        norm_num_groups=8,
    )
    return StableDiffusionXLPipeline(
        vae=sd.vae,
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=sd.tokenizer,
        tokenizer_2=sd.tokenizer,
        unet=unet,
        scheduler=sd.scheduler,
    )


def sdxl_unet() -> UNet2DConditionModel:
    """With the config of stable-diffusion-xl-base-1.0."""
    return UNet2DConditionModel(
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(320, 640, 1280),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )


def sgm_name(unet: nn.Module) -> Callable[[str], str]:
    """kohya's name of a layer of SDXL, by its name in diffusers."""
    original = {"input_blocks", "middle_block", "output_blocks", "time_embed_", "label_emb", "out_0", "out_2"}
    by_path = {path: name for name, path in layer_paths(unet).items() if any(name.startswith(o) for o in original)}
    flat = {path.replace(".", "_"): path for path in by_path}
    return lambda name: by_path[flat[name]]


# -- against diffusers ------------------------------------------------------------------------------------------------


kohya_as_judge = pytest.mark.skipif(
    tuple(map(int, diffusers.__version__.split(".")[:2])) < (0, 39),
    reason="diffusers before 0.39 leaves out layers of kohya's files (conv_in, label_emb)",
)


@kohya_as_judge
@pytest.mark.parametrize("weight", [1.0, -0.7])
def test_kohya(sd: StableDiffusionPipeline, tmp_path: Path, weight: float) -> None:
    tensors = kohya(sd.unet, "lora_unet_") | kohya(sd.text_encoder, "lora_te_")
    changed = {c: len(list(layers(getattr(sd, c)))) for c in ("unet", "text_encoder")}
    assert_equal_to_diffusers(sd, write(tmp_path / "kohya.safetensors", tensors), weight, changed)


@kohya_as_judge
@pytest.mark.parametrize("names", ["diffusers", "sgm"])
def test_kohya_sdxl(xl: StableDiffusionXLPipeline, tmp_path: Path, names: str) -> None:
    unet = kohya(xl.unet, "lora_unet_", sgm_name(xl.unet) if names == "sgm" else str)
    if names == "diffusers":  # diffusers takes these two by their SGM names only
        unet = {key: tensor for key, tensor in unet.items() if "add_embedding" not in key}
    tensors = unet | kohya(xl.text_encoder, "lora_te1_") | kohya(xl.text_encoder_2, "lora_te2_")
    changed = {"unet": len(unet) // 3, "text_encoder": 12, "text_encoder_2": 13}
    assert_equal_to_diffusers(xl, write(tmp_path / "kohya.safetensors", tensors), 0.6, changed)


@kohya_as_judge
@pytest.mark.parametrize("size", ["tiny", "real"])
def test_original_names_are_those_diffusers_reads(xl: StableDiffusionXLPipeline, size: str) -> None:
    """Every linear layer and convolution of SDXL has one original name, and diffusers takes it for the same layer."""
    with torch.device("meta"):
        unet = xl.unet if size == "tiny" else sdxl_unet()
    name = sgm_name(unet)
    ours = {f"lora_unet_{name(path.replace('.', '_'))}.lora_down.weight": path for path, _ in layers(unet)}
    assert len(ours) == len(list(layers(unet)))
    theirs = _maybe_map_sgm_blocks_to_diffusers(ours.copy(), unet.config)
    for key, path in theirs.items():
        found = _convert_unet_lora_key(key).replace(".processor", "").removesuffix(".down.weight")
        for old, new in (("to_out_lora", "to_out.0"), ("_lora", ""), (".lora", "")):
            found = found.replace(old, new)
        assert found == path


@pytest.mark.parametrize("weight", [1.0, 0.4])
def test_files_of_diffusers(xl: StableDiffusionXLPipeline, tmp_path: Path, weight: float) -> None:
    """Written by save_lora_weights, with alphas of their own in the file's metadata."""
    trained = copy.deepcopy(xl)
    unet = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q", "to_out.0", "ff.net.2", "conv1", "proj_in", "conv"],
        alpha_pattern={"conv1": 3, "mid_block.attentions.0.proj_in": 9},
        init_lora_weights=False,
    )
    text = LoraConfig(r=4, lora_alpha=2, use_rslora=True, target_modules=["q_proj", "fc1"], init_lora_weights=False)
    parts = {"unet": unet, "text_encoder": text, "text_encoder_2": text}
    torch.manual_seed(1)
    for component, config in parts.items():
        # PEFT itself: add_adapter of a newer transformers asks for a newer PEFT.
        inject_adapter_in_model(copy.deepcopy(config), getattr(trained, component))
        getattr(trained, component).peft_config = {"default": config}
    saved = {f"{c}_lora_layers": get_peft_model_state_dict(getattr(trained, c)) for c in parts}
    settings = {f"{c}_lora_adapter_metadata": getattr(trained, c).peft_config["default"].to_dict() for c in parts}
    trained.save_lora_weights(tmp_path, **saved, **settings)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    changed = {c: sum(k.endswith("lora_A.weight") for k in saved[f"{c}_lora_layers"]) for c in parts}
    assert min(changed.values()) == 4
    assert_equal_to_diffusers(xl, file, weight, changed)


@pytest.mark.parametrize("rslora", [False, True])
def test_files_of_one_model(sd: StableDiffusionPipeline, tmp_path: Path, rslora: bool) -> None:
    """``save_lora_adapter`` writes a U-Net's adapter, whose settings name no component."""
    trained = copy.deepcopy(sd.unet)
    config = LoraConfig(
        r=4,
        lora_alpha=10,
        target_modules=["to_q", "to_out.0", "conv1"],
        use_rslora=rslora,
        alpha_pattern={"conv1": 3},
        rank_pattern={"to_out.0": 7},
        init_lora_weights=False,
    )
    torch.manual_seed(1)
    trained.add_adapter(config, "own")
    trained.save_lora_adapter(tmp_path, adapter_name="own")
    file = tmp_path / "pytorch_lora_weights.safetensors"
    loaded = copy.deepcopy(sd.unet)
    loaded.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    loaded.fuse_lora(lora_scale=0.8)
    loaded.unload_lora()
    merged = copy.deepcopy(sd.unet)
    count = merge([read_lora(file, 0.8)], "unet", merged)
    moved = [n for n, t in merged.state_dict().items() if (t - sd.unet.state_dict()[n]).abs().max() > 1e-2]
    assert count == len(moved) == len(get_peft_model_state_dict(trained, adapter_name="own")) // 2
    torch.testing.assert_close(merged.state_dict(), loaded.state_dict(), rtol=0, atol=1e-5)


def test_ranks_without_an_alpha_are_said(sd: StableDiffusionPipeline, tmp_path: Path) -> None:
    def file(name: str, ranks: tuple[int, int], metadata: dict[str, str] | None = None, a: str = "lora_A") -> Path:
        tensors: Tensors = {}
        for path, rank in zip((LINEAR, POINT), ranks, strict=True):
            down, up = low_rank(sd.unet.get_submodule(path), rank, rank)
            b = {"lora_A": "lora_B", "lora_down": "lora_up"}[a]
            tensors |= {f"unet.{path}.{a}.weight": down, f"unet.{path}.{b}.weight": up}
        return write(tmp_path / f"{name}.safetensors", tensors, metadata)

    said = read_lora(file("mixed", (4, 7))).doubt
    assert re.search(r"mixed\.safetensors: its layers of unet have ranks 4, 7 and it says no alpha", said)
    alpha = {"lora_adapter_metadata": '{"unet.lora_alpha": 4}'}
    for clear in (file("equal", (4, 4)), file("alpha", (4, 7), alpha), file("kohya", (4, 7), a="lora_down")):
        assert read_lora(clear).doubt == ""


@pytest.mark.parametrize("weight", [1.0, 0.6, -0.4])
def test_dora_of_peft(sd: StableDiffusionPipeline, tmp_path: Path, weight: float) -> None:
    trained = copy.deepcopy(sd.unet)
    torch.manual_seed(1)
    trained.add_adapter(LoraConfig(r=4, use_dora=True, target_modules=["to_q", "conv1"], init_lora_weights=False))
    weights = get_peft_model_state_dict(trained)
    assert any(key.endswith("lora_magnitude_vector") for key in weights)
    weights = {k: v * 1.3 if "magnitude" in k else v for k, v in weights.items()}
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=weights)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    assert_equal_to_diffusers(sd, file, weight, {"unet": len(weights) // 3})


def old_unet(path: str) -> str:
    head, _, last = path.removesuffix(".0").rpartition(".")
    return f"unet.{head}.processor.{last}_lora"


def old_text(path: str) -> str:
    head, _, last = path.rpartition(".")
    return f"text_encoder.{head}.to_{last.removesuffix('_proj')}_lora"


def new_unet(path: str) -> str:
    return f"unet.{path}.lora"


def new_text(path: str) -> str:
    return f"text_encoder.{path}.lora_linear_layer"


@pytest.mark.parametrize(("of_unet", "of_text"), [(old_unet, old_text), (new_unet, new_text)])
def test_older_files_of_diffusers(
    sd: StableDiffusionPipeline, tmp_path: Path, of_unet: Callable[[str], str], of_text: Callable[[str], str]
) -> None:
    tensors: Tensors = {}
    for component, last, name in (("unet", ("to_q", "to_out.0"), of_unet), ("text_encoder", ("_proj",), of_text)):
        for seed, (path, layer) in enumerate(layers(getattr(sd, component))):
            if path.endswith(last):
                down, up = low_rank(layer, 3, 2 * seed)
                tensors |= {f"{name(path)}.down.weight": down, f"{name(path)}.up.weight": up}
    file = write(tmp_path / "old.safetensors", tensors)
    text = sum(k.startswith("text_encoder.") for k in tensors) // 2
    assert_equal_to_diffusers(sd, file, 0.5, {"unet": len(tensors) // 2 - text, "text_encoder": text})


# -- closed forms -----------------------------------------------------------------------------------------------------

CONV, LINEAR = "mid_block.resnets.0.conv1", "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"
POINT = "down_blocks.0.attentions.0.proj_in"  # a 1x1 convolution


def array(tensors: Tensors, name: str) -> np.ndarray:
    return tensors[name].double().numpy()


def changes(unet: nn.Module, path: str, file: Path | list[Path], weight: float | list[float] = 1.0) -> np.ndarray:
    """What a merge adds to one layer's weight."""
    files, weights = (file, weight) if isinstance(file, list) else ([file], [weight])
    module = copy.deepcopy(unet)
    loras = [read_lora(f, w) for f, w in zip(files, weights, strict=True)]  # type: ignore[arg-type]
    check(loras, {"unet": copy.deepcopy(unet).to("meta")})
    assert merge(loras, "unet", module) == 1
    return (module.get_submodule(path).weight - unet.get_submodule(path).weight).detach().double().numpy()


def file_of(folder: Path, path: str, tensors: Tensors, name: str = "lora") -> Path:
    stem = "lora_unet_" + path.replace(".", "_")
    return write(folder / f"{name}.safetensors", {f"{stem}.{key}": tensor for key, tensor in tensors.items()})


def shape(unet: nn.Module, path: str) -> tuple[int, ...]:
    return tuple(unet.get_submodule(path).weight.shape)


def test_two_loras_add_with_their_own_weights_and_alphas(sd: StableDiffusionPipeline, tmp_path: Path) -> None:
    out, into = shape(sd.unet, LINEAR)
    one = {"lora_down.weight": normal(0, 3, into), "lora_up.weight": normal(1, out, 3), "alpha": torch.tensor(1.5)}
    two = {"lora_down.weight": normal(2, 5, into), "lora_up.weight": normal(3, out, 5)}
    files = [file_of(tmp_path, LINEAR, one, "one"), file_of(tmp_path, LINEAR, two, "two")]
    expected = 0.8 * 0.5 * array(one, "lora_up.weight") @ array(one, "lora_down.weight")
    expected -= 1.25 * array(two, "lora_up.weight") @ array(two, "lora_down.weight")
    np.testing.assert_allclose(changes(sd.unet, LINEAR, files, [0.8, -1.25]), expected, atol=1e-6)
    np.testing.assert_allclose(changes(sd.unet, LINEAR, files[::-1], [-1.25, 0.8]), expected, atol=1e-6)


def test_an_alpha_of_zero_is_the_rank(sd: StableDiffusionPipeline, tmp_path: Path) -> None:
    out, into = shape(sd.unet, LINEAR)
    t = {"lora_down.weight": normal(0, 3, into), "lora_up.weight": normal(1, out, 3), "alpha": torch.tensor(0.0)}
    expected = array(t, "lora_up.weight") @ array(t, "lora_down.weight")
    np.testing.assert_allclose(changes(sd.unet, LINEAR, file_of(tmp_path, LINEAR, t)), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_multiplied_in_float32(
    sd: StableDiffusionPipeline, tmp_path: Path, dtype: torch.dtype
) -> None:
    out, into = shape(sd.unet, LINEAR)
    t = {"lora_down.weight": normal(0, 3, into), "lora_up.weight": normal(1, out, 3), "alpha": torch.tensor(2.0)}
    t = {name: tensor.to(dtype) for name, tensor in t.items()}
    expected = 2 / 3 * array(t, "lora_up.weight") @ array(t, "lora_down.weight")
    np.testing.assert_allclose(changes(sd.unet, LINEAR, file_of(tmp_path, LINEAR, t)), expected, atol=1e-6)


def test_linear_shapes_on_a_point_convolution(sd: StableDiffusionPipeline, tmp_path: Path) -> None:
    out, into = shape(sd.unet, POINT)[:2]
    t = {"lora_down.weight": normal(0, 3, into), "lora_up.weight": normal(1, out, 3)}
    expected = array(t, "lora_up.weight") @ array(t, "lora_down.weight")
    found = changes(sd.unet, POINT, file_of(tmp_path, POINT, t))
    np.testing.assert_allclose(found[:, :, 0, 0], expected, atol=1e-6)


def test_convolution_shapes_on_a_linear_layer(sd: StableDiffusionPipeline, tmp_path: Path) -> None:
    out, into = shape(sd.unet, LINEAR)
    t = {"lora_down.weight": normal(0, 3, into, 1, 1), "lora_up.weight": normal(1, out, 3, 1, 1)}
    expected = array(t, "lora_up.weight")[..., 0, 0] @ array(t, "lora_down.weight")[..., 0, 0]
    np.testing.assert_allclose(changes(sd.unet, LINEAR, file_of(tmp_path, LINEAR, t)), expected, atol=1e-6)


def test_locon_is_two_convolutions(sd: StableDiffusionPipeline, tmp_path: Path) -> None:
    """Down, middle (Tucker) and up one after the other are the convolution with the merged change."""
    out, into, *kernel = shape(sd.unet, CONV)
    x = normal(9, 1, into, 7, 7).double()
    for middle in (False, True):
        t = {
            "lora_down.weight": normal(0, 3, into, *([1, 1] if middle else kernel)),
            "lora_up.weight": normal(1, out, 3, 1, 1),
        }
        if middle:
            t["lora_mid.weight"] = normal(2, 3, 3, *kernel)
        y = torch.nn.functional.conv2d(x, t["lora_down.weight"].double())
        y = torch.nn.functional.conv2d(y, t["lora_mid.weight"].double()) if middle else y
        y = torch.nn.functional.conv2d(y, t["lora_up.weight"].double())
        change = torch.from_numpy(changes(sd.unet, CONV, file_of(tmp_path, CONV, t)))
        torch.testing.assert_close(torch.nn.functional.conv2d(x, change), y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("path", [LINEAR, CONV])
def test_loha(sd: StableDiffusionPipeline, tmp_path: Path, path: str) -> None:
    out, *rest = shape(sd.unet, path)
    into = int(np.prod(rest))
    t = {
        f"hada_w{i}_{x}": normal(10 * i + (x == "b"), *((out, 3) if x == "a" else (3, into)))
        for i in (1, 2)
        for x in "ab"
    }
    t["alpha"] = torch.tensor(1.0)
    halves = [np.einsum("or,ri->oi", array(t, f"hada_w{i}_a"), array(t, f"hada_w{i}_b")) for i in (1, 2)]
    expected = (halves[0] * halves[1] / 3).reshape(out, *rest)
    np.testing.assert_allclose(changes(sd.unet, path, file_of(tmp_path, path, t)), expected, atol=1e-6)


def test_loha_tucker(sd: StableDiffusionPipeline, tmp_path: Path) -> None:
    out, into, *kernel = shape(sd.unet, CONV)
    t = {f"hada_w{i}_{x}": normal(10 * i + (x == "b"), 3, out if x == "a" else into) for i in (1, 2) for x in "ab"}
    t |= {f"hada_t{i}": normal(30 + i, 3, 3, *kernel) for i in (1, 2)}
    t["alpha"] = torch.tensor(6.0)
    halves = [
        sum(
            array(t, f"hada_t{i}")[a, b]
            * array(t, f"hada_w{i}_a")[a, :, None, None, None]
            * array(t, f"hada_w{i}_b")[b, None, :, None, None]
            for a in range(3)
            for b in range(3)
        )
        for i in (1, 2)
    ]
    expected = 2 * halves[0] * halves[1]
    np.testing.assert_allclose(changes(sd.unet, CONV, file_of(tmp_path, CONV, t)), expected, atol=1e-6)


@pytest.mark.parametrize("left", ["full", "factors"])
@pytest.mark.parametrize(
    ("path", "right"),
    [(LINEAR, "full"), (LINEAR, "factors"), (CONV, "full"), (CONV, "factors"), (CONV, "flat"), (CONV, "tucker")],
)
def test_lokr(sd: StableDiffusionPipeline, tmp_path: Path, path: str, left: str, right: str) -> None:
    out, into, *kernel = shape(sd.unet, path)
    k, c, rank = out // 4, into // 8, 3
    t = {"alpha": torch.tensor(1.5)}
    if left == "full":
        t["lokr_w1"] = normal(0, 4, 8)
        w1 = array(t, "lokr_w1")
    else:
        t |= {"lokr_w1_a": normal(0, 4, rank), "lokr_w1_b": normal(1, rank, 8)}
        w1 = array(t, "lokr_w1_a") @ array(t, "lokr_w1_b")
    if right == "full":
        t["lokr_w2"] = normal(2, k, c, *kernel)
        w2 = array(t, "lokr_w2")
    elif right == "tucker":
        t |= {
            "lokr_w2_a": normal(2, rank, k),
            "lokr_w2_b": normal(3, rank, c),
            "lokr_t2": normal(4, rank, rank, *kernel),
        }
        w2 = np.einsum("abhw,ao,bi->oihw", array(t, "lokr_t2"), array(t, "lokr_w2_a"), array(t, "lokr_w2_b"))
    else:
        t |= {"lokr_w2_a": normal(2, k, rank), "lokr_w2_b": normal(3, rank, c, *kernel)}
        w2 = np.einsum("or,r...->o...", array(t, "lokr_w2_a"), array(t, "lokr_w2_b"))
        if right == "flat":  # as LyCORIS writes it
            t["lokr_w2_b"] = t["lokr_w2_b"].flatten(1)
    expected = np.empty((out, into, *kernel))
    for i in range(4):
        for j in range(8):
            expected[i * k : (i + 1) * k, j * c : (j + 1) * c] = w1[i, j] * w2
    expected *= 1.0 if (left, right) == ("full", "full") else 1.5 / rank
    np.testing.assert_allclose(changes(sd.unet, path, file_of(tmp_path, path, t)), expected, atol=1e-6)


def test_full_differences_and_biases(sd: StableDiffusionPipeline, tmp_path: Path) -> None:
    unet = copy.deepcopy(sd.unet)
    conv, norm = unet.get_submodule(CONV), unet.get_submodule("conv_norm_out")
    before = [p.detach().clone() for p in (conv.weight, conv.bias, norm.weight, norm.bias)]
    added = [normal(i, *p.shape) for i, p in enumerate(before)]
    names = (f"{CONV}.diff", f"{CONV}.diff_b", "conv_norm_out.w_norm", "conv_norm_out.b_norm")
    file = write(tmp_path / "full.safetensors", {f"unet.{n}": t for n, t in zip(names, added, strict=True)})
    assert merge([read_lora(file, 0.5)], "unet", unet) == 2
    for parameter, was, change in zip((conv.weight, conv.bias, norm.weight, norm.bias), before, added, strict=True):
        torch.testing.assert_close(parameter.detach(), was + 0.5 * change, rtol=0, atol=1e-6)


@pytest.mark.parametrize("path", [LINEAR, CONV])
@pytest.mark.parametrize("axis", ["out", "in"])
def test_dora_of_lycoris(sd: StableDiffusionPipeline, tmp_path: Path, path: str, axis: str) -> None:
    """The merged weight has the given length along every output (or input) and the direction of the sum."""
    out, into, *kernel = shape(sd.unet, path)
    ones = [1] * len(kernel)
    sizes = (
        (1.5 + normal(5, out)).reshape(out, 1, *ones)
        if axis == "out"
        else (1.5 + normal(5, into)).reshape(1, into, *ones)
    )
    t = {
        "lora_down.weight": normal(0, 3, into, *kernel),
        "lora_up.weight": normal(1, out, 3, *ones),
        "dora_scale": sizes,
    }
    was = sd.unet.get_submodule(path).weight.detach().double().numpy()
    plain = {name: tensor for name, tensor in t.items() if name != "dora_scale"}
    total = was + changes(sd.unet, path, file_of(tmp_path, path, plain))
    found = was + changes(sd.unet, path, file_of(tmp_path, path, t))
    others = tuple(d for d in range(found.ndim) if d != (axis == "in"))
    np.testing.assert_allclose(np.sqrt((found**2).sum(others)), sizes.numpy().ravel(), rtol=1e-4)
    ratio = found / total
    np.testing.assert_allclose(
        ratio, np.broadcast_to(np.median(ratio, axis=others, keepdims=True), ratio.shape), rtol=1e-2
    )
    half = was + changes(sd.unet, path, file_of(tmp_path, path, t), 0.5)  # the weight turns, and keeps the lengths
    toward = (was + total) / 2
    expected = toward * (np.sqrt((found**2).sum(others, keepdims=True) / (toward**2).sum(others, keepdims=True)))
    np.testing.assert_allclose(half, expected, atol=1e-6)


@pytest.mark.parametrize("beside", [True, False])
def test_a_file_of_peft_takes_its_alpha_from_the_config_beside_it(
    sd: StableDiffusionPipeline, tmp_path: Path, beside: bool
) -> None:
    out, into = shape(sd.unet, LINEAR)
    down, up = normal(0, 4, into), normal(1, out, 4)
    stem = f"base_model.model.{LINEAR}"
    file = write(tmp_path / "adapter_model.safetensors", {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up})
    if beside:
        config = LoraConfig(r=4, lora_alpha=16)
        config.save_pretrained(tmp_path)
    expected = (4 if beside else 1) * up.double().numpy() @ down.double().numpy()
    np.testing.assert_allclose(changes(sd.unet, LINEAR, file), expected, atol=1e-5)


@pytest.mark.parametrize("tucker", [False, True])
@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr"])
def test_files_of_lycoris(sd: StableDiffusionPipeline, tmp_path: Path, algorithm: str, tucker: bool) -> None:
    """LyCORIS' own network over the whole U-Net, filled with seeded numbers and saved by it."""
    lycoris = pytest.importorskip("lycoris")
    lycoris.LycorisNetwork.apply_preset({"target_module": ["Transformer2DModel", "ResnetBlock2D"]})
    torch.manual_seed(2)
    net = lycoris.create_lycoris(
        copy.deepcopy(sd.unet), 1.0, linear_dim=2, linear_alpha=3, algo=algorithm, use_tucker=tucker, factor=4
    )
    net.apply_to()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.3)
    file = write(tmp_path / "lycoris.safetensors", {key: t.detach() for key, t in net.state_dict().items()})
    merged = copy.deepcopy(sd.unet)
    check([read_lora(file)], {"unet": merged})
    assert merge([read_lora(file)], "unet", merged) == len(net.loras) > 20
    names = {f"lycoris_{path.replace('.', '_')}": path for path, _ in layers(sd.unet)}
    for lora in net.loras:
        was = sd.unet.get_submodule(names[lora.lora_name]).weight
        change = lora.make_weight() * lora.scale if algorithm == "lora" else lora.get_weight(lora.shape)
        found = merged.get_submodule(names[lora.lora_name]).weight
        torch.testing.assert_close(found, was + change.view(was.shape), rtol=0, atol=1e-5)


# -- what is refused --------------------------------------------------------------------------------------------------


def good(unet: nn.Module, path: str = LINEAR) -> Tensors:
    down, up = low_rank(unet.get_submodule(path), 3, 0)
    return {"lora_down.weight": down, "lora_up.weight": up}


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite(sd: StableDiffusionPipeline, tmp_path: Path, weight: float) -> None:
    with pytest.raises(ArgumentError, match=r"the weight of .*lora\.safetensors is (nan|inf)"):
        read_lora(file_of(tmp_path, LINEAR, good(sd.unet)), weight)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match=r"no LoRA file at .*style\.safetensors"):
        read_lora(tmp_path / "style.safetensors")


def test_not_safetensors(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "style.pt")
    with pytest.raises(BundleError, match=r"style\.pt is not a safetensors file"):
        read_lora(tmp_path / "style.pt")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "has no LoRA in it: its 0 keys"),
        ({"conv_in.weight": (4,), "conv_in.bias": (4,)}, "has no LoRA in it: its 2 keys begin with conv_in"),
        ({"lora_unet_conv_in.oft_blocks": (2, 2)}, "oft_blocks is OFT, which cannot be merged; choose LoRA, LoCon"),
        ({"lora_unet_conv_in.on_input": (1,), "lora_unet_conv_in.weight": (4,)}, "on_input is IA3"),
        ({"lora_unet_conv_in.a1.weight": (4, 2)}, "a1.weight is GLoRA"),
        ({"lora_unet_conv_in.diff": (4,), "lora_unet_conv_in.rank_weight": (4,)}, "rank_weight is of no algorithm"),
        ({"lora_unet_conv_in.lora_down.weight": (2, 4)}, "lora_down.weight has only down: tensors are missing"),
        ({"lora_unet_conv_in.hada_w1_a": (4, 2), "lora_unet_conv_in.alpha": ()}, "has only alpha, hada_w1_a"),
        ({"unet.conv_in.lora_A.weight": (2, 4), "unet.conv_in.lora.down.weight": (2, 4)}, "are the same tensor"),
    ],
)
def test_keys_that_are_refused(tmp_path: Path, keys: dict[str, tuple[int, ...]], message: str) -> None:
    file = write(tmp_path / "bad.safetensors", {key: torch.zeros(size) for key, size in keys.items()})
    with pytest.raises(BundleError, match=message):
        read_lora(file)


@pytest.mark.parametrize(
    "settings", ["{", "[1]", '{"unet.lora_alpha": "big"}', '{"unet.lora_alpha": 4, "unet.alpha_pattern": {"(": 2}}']
)
def test_settings_of_peft_that_are_malformed(tmp_path: Path, settings: str) -> None:
    tensors = {"unet.conv_in.lora_A.weight": torch.zeros(2, 4), "unet.conv_in.lora_B.weight": torch.zeros(4, 2)}
    file = write(tmp_path / "bad.safetensors", tensors, {"lora_adapter_metadata": settings})
    with pytest.raises(BundleError, match="lora_adapter_metadata is not PEFT's settings"):
        read_lora(file)


def refused(unet: nn.Module, file: Path, message: str) -> None:
    """Refused from names and shapes alone, before any weights."""
    with pytest.raises(ArgumentError, match=message):
        check([read_lora(file)], {"unet": copy.deepcopy(unet).to("meta")})


def test_layers_that_the_model_does_not_have(sd: StableDiffusionPipeline, tmp_path: Path) -> None:
    stems = ("lora_te2_text_projection", *(f"lora_unet_up_blocks_9_resnets_{i}_conv1" for i in range(3)))
    lost = {f"{stem}.{name}": tensor for stem in stems for name, tensor in good(sd.unet).items()}
    known = {f"unet.{LINEAR}.{name}": tensor for name, tensor in good(sd.unet).items()}
    message = r"4 of its 5 layers are not in the model: lora_te2_text_projection\.lora_.*, \.\.\.; .* LoRA for SDXL"
    refused(sd.unet, write(tmp_path / "lora.safetensors", known | lost), message)


def test_a_lora_for_flux(sd: StableDiffusionPipeline, tmp_path: Path) -> None:
    tensors = {
        f"transformer.single_transformer_blocks.0.proj_out.{x}.weight": torch.zeros(4, 4) for x in ("lora_A", "lora_B")
    }
    refused(sd.unet, write(tmp_path / "flux.safetensors", tensors), "1 of its 1 layers .* a transformer such as Flux")


@pytest.mark.parametrize(("width", "family"), [(1024, r"SD 2\.x"), (2048, "SDXL")])
def test_a_lora_of_another_family(tmp_path: Path, width: int, family: str) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    t = {"lora_down.weight": torch.zeros(4, width), "lora_up.weight": torch.zeros(320, 4)}
    message = rf"a weight of \(320, {width}\), the model's is \(320, 768\).* LoRA for {family}, the model is SD 1\.x"
    refused(unet, file_of(tmp_path, path, t), message)


@pytest.mark.parametrize(
    ("path", "change", "message"),
    [
        (LINEAR, {"lora_up.weight": (7, 3)}, r"the model's is \(128, 16\); it has .*lora_up\.weight \(7, 3\)"),
        (LINEAR, {"lora_up.weight": (128, 5)}, "does not fit unet.mid_block.*it has .*lora_down"),
        (LINEAR, {"lora_down.weight": (3, 16, 3, 3)}, r"a weight of \(128, 16, 3, 3\), the model's is \(128, 16\)"),
        (CONV, {"lora_mid.weight": (3, 4, 3, 3)}, "does not fit"),
        (LINEAR, {"dora_scale": (9, 1)}, "9 magnitudes"),
        (LINEAR, {"alpha": (2,)}, "does not fit"),
        (LINEAR, {"diff_b": (9,)}, r"a weight of \(9,\), the model's is \(128,\)"),
        ("mid_block.attentions.0.transformer_blocks.0.attn1.to_q", {"diff_b": (16,)}, "the model has none here"),
    ],
)
def test_shapes_that_do_not_fit(
    sd: StableDiffusionPipeline, tmp_path: Path, path: str, change: dict[str, tuple[int, ...]], message: str
) -> None:
    file = file_of(tmp_path, path, good(sd.unet, path) | {name: torch.ones(size) for name, size in change.items()})
    refused(sd.unet, file, message)
    with pytest.raises(ArgumentError, match=message):
        merge([read_lora(file)], "unet", copy.deepcopy(sd.unet))


def test_a_layer_under_two_names(sd: StableDiffusionPipeline, tmp_path: Path) -> None:
    stems = ("lora_unet_conv_in", "lora_unet_input_blocks_0_0")
    tensors = {f"{stem}.{name}": tensor for stem in stems for name, tensor in good(sd.unet, "conv_in").items()}
    refused(
        sd.unet, write(tmp_path / "lora.safetensors", tensors), r"changes unet\.conv_in twice: .* and lora_unet_input"
    )


@pytest.mark.parametrize("name", ["alpha", "lora_up.weight"])
def test_values_that_are_not_finite(sd: StableDiffusionPipeline, tmp_path: Path, name: str) -> None:
    tensors = good(sd.unet) | {"alpha": torch.tensor(1.0)}
    tensors[name] = torch.full_like(tensors[name], float("nan"))
    file = file_of(tmp_path, LINEAR, tensors)
    with pytest.raises(ArgumentError, match=r"alpha is nan|values that are not finite, first in lora_unet_mid_block"):
        merge([read_lora(file)], "unet", copy.deepcopy(sd.unet))


def test_a_component_that_the_file_says_nothing_about(sd: StableDiffusionPipeline, tmp_path: Path) -> None:
    encoder = copy.deepcopy(sd.text_encoder)
    assert merge([read_lora(file_of(tmp_path, LINEAR, good(sd.unet)))], "text_encoder", encoder) == 0
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, sd.text_encoder.state_dict()[name])


def test_components_of_a_source(sd: StableDiffusionPipeline, tiny_source: Path, tmp_path: Path) -> None:
    """As an export goes: checked on hollow modules, merged into one loaded module at a time."""
    source = open_source(tiny_source)
    tensors = kohya(sd.unet, "lora_unet_") | kohya(sd.text_encoder, "lora_te_")
    loras = [read_lora(write(tmp_path / "kohya.safetensors", tensors))]
    components = ("text_encoder", "unet")
    check(loras, {component: source.hollow(component) for component in components})
    count = 0
    for component in components:
        before = source.weights(component)
        lazily = merged_weights(loras, component, source.hollow(component), before)
        model = source.reference(component, wide=True)
        count += merge(loras, component, model)
        for name, value in model.state_dict().items():
            if name in before:  # those that tracing reads are the same, one by one
                np.testing.assert_allclose(lazily[name].read(), value.numpy(), rtol=1e-6, atol=1e-7)
        assert any(np.abs(lazily[name].read() - before[name].read()).max() > 1e-3 for name in before)
    assert count == len(tensors) // 3


def test_check_changes_nothing(sd: StableDiffusionPipeline, tmp_path: Path) -> None:
    unet = copy.deepcopy(sd.unet)
    check([read_lora(file_of(tmp_path, LINEAR, good(sd.unet)))], {"unet": unet})
    assert all(torch.equal(tensor, sd.unet.state_dict()[name]) for name, tensor in unet.state_dict().items())


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.alpha", ("unet", "mid_block_attentions_0_proj_in", "alpha")),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_mid.weight", ("text_encoder", "*_mlp_fc1", "mid")),
        ("lycoris_conv_in.dora_scale", ("unet", "conv_in", "dora_scale")),
        ("diffusion_model.input_blocks.4.1.proj_in.lora_up.weight", ("unet", "input_blocks_4_1_proj_in", "up")),
        ("down_blocks.0.attn1.processor.to_out_lora.down.weight", ("unet", "down_blocks_0_attn1_to_out_0", "down")),
        ("unet.conv_in.lora.alpha", ("unet", "conv_in", "alpha")),
        ("base_model.model.text_model.encoder.layers.0.mlp.fc1.lora_B.weight", ("text_encoder", "*_mlp_fc1", "up")),
        ("text_encoder_2.text_projection.lora_A.weight", ("text_encoder_2", "text_projection", "down")),
        ("unet.conv_in.weight", None),
    ],
)
def test_keys(key: str, expected: tuple[str, str, str] | None) -> None:
    if expected is not None:
        expected = (expected[0], expected[1].replace("*", "text_model_encoder_layers_0"), expected[2])
    assert parse_key(key) == expected
