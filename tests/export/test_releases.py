"""What releases of transformers and diffusers name or do otherwise, held against the release that is installed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizerFast

from edgediff_export.lora.file import read_lora
from edgediff_export.lora.merging import check, merge
from edgediff_export.onnx_graph.casts import drop_idle_casts
from edgediff_export.onnx_graph.clip_text import TextEncoder
from edgediff_export.sources.clip_tokenizer import END, EXCLAMATION, clip_tokenizer, load_tokenizer, write_tokenizer
from edgediff_export.sources.folder import Folder

from ..support.tiny import seeded

ROOT = Path(__file__).parents[2]
INNER = "text_model."
COUNT = 700  # words


def text_model(projected: bool, **settings: Any) -> Any:
    config = CLIPTextConfig(
        vocab_size=COUNT,
        hidden_size=32,
        intermediate_size=64,
        projection_dim=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        initializer_factor=3.0,
        **{"max_position_embeddings": 77, "bos_token_id": COUNT - 2, "eos_token_id": COUNT - 1, **settings},
    )
    return seeded((CLIPTextModelWithProjection if projected else CLIPTextModel)(config))


@pytest.mark.parametrize(
    ("projected", "settings"),
    [
        (False, {}),
        (False, {"hidden_act": "gelu"}),
        (False, {"max_position_embeddings": 90}),
        (True, {"hidden_act": "gelu"}),
        (True, {"eos_token_id": 2}),  # as configs had it, where the end is the token of the highest id
    ],
)
@torch.no_grad()
def test_our_pass_of_a_text_encoder_is_that_of_transformers(projected: bool, settings: dict[str, Any]) -> None:
    model = text_model(projected, **settings)
    ids = torch.randint(3, COUNT - 2, (4, 77), generator=torch.Generator().manual_seed(0))
    ids[:, 0] = COUNT - 2
    for row, end in enumerate((1, 5, 40, 76)):
        ids[row, end:] = COUNT - 1
    theirs = model(ids, output_hidden_states=True)
    ours = TextEncoder(model, 77, 2, projected, projected)(ids, torch.zeros(1, 32))
    norm = getattr(model, "text_model", model).final_layer_norm
    if projected:
        expected = [*(theirs.hidden_states[-2 - k] for k in range(3)), theirs.text_embeds]
    else:
        expected = [theirs.last_hidden_state, *(norm(theirs.hidden_states[-1 - k]) for k in (1, 2))]
    for found, wanted in zip(ours, expected, strict=True):
        assert wanted.std() > 0.01
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=2e-5)


@pytest.fixture(params=["nested", "flat"])
def spelt(request: pytest.FixtureRequest, tiny_source: Path, tmp_path: Path) -> tuple[str, Path]:
    """The tiny pipeline with its text encoder in the spelling of transformers 4 (nested), or of 5 (flat)."""
    import shutil

    root = Path(shutil.copytree(tiny_source, tmp_path / "source"))
    path = root / "text_encoder" / "model.safetensors"
    bare = {name.removeprefix(INNER): value for name, value in load_file(path).items()}
    inner = INNER if request.param == "nested" else ""
    save_file({inner + name: value for name, value in bare.items()}, path, {"format": "pt"})
    return request.param, root


def test_folders_of_either_release_load(spelt: tuple[str, Path], tiny_source: Path) -> None:
    found = Folder(spelt[1]).reference("text_encoder", wide=True).state_dict()
    stored = load_file(tiny_source / "text_encoder" / "model.safetensors")
    assert len(found) == len(stored) == 36
    bare = {name.removeprefix(INNER): value for name, value in found.items()}
    for name, value in stored.items():
        assert torch.equal(bare[name.removeprefix(INNER)], value), name


@pytest.mark.parametrize("inner", [INNER, ""])
@pytest.mark.parametrize("begins", ["text_encoder.", "base_model.model.", "lora_te_"])
def test_loras_of_either_release_fit(tmp_path: Path, inner: str, begins: str) -> None:
    """PEFT names the layers as the release does in which it trained."""
    model = text_model(False)
    layer = f"{inner}encoder.layers.1.self_attn.v_proj"
    up, down = torch.randn(32, 4), torch.randn(4, 32)
    if begins == "lora_te_":
        names = [f"{begins}{layer.replace('.', '_')}.lora_{end}.weight" for end in ("up", "down")]
    else:
        names = [f"{begins}{layer}.lora_{end}.weight" for end in ("B", "A")]
    save_file(dict(zip(names, (up, down), strict=True)), tmp_path / "a.safetensors")
    loras = [read_lora(tmp_path / "a.safetensors", 0.5)]
    target = getattr(model, "text_model", model).encoder.layers[1].self_attn.v_proj.weight
    before = target.detach().clone()
    check(loras, {"text_encoder": model})
    assert merge(loras, "text_encoder", model) == 1
    torch.testing.assert_close(target.detach(), before + 0.5 * up @ down)


def test_tokenizers_are_written_in_one_form(tmp_path: Path) -> None:
    """The hashes are those of transformers 4.57's own files."""
    write_tokenizer(load_tokenizer(ROOT / "export/reference_model/pipeline/tokenizer"), tmp_path / "emoji.json")
    emoji = ROOT / "edgediff/models/emoji/tokenizer.json"
    assert (tmp_path / "emoji.json").read_bytes() == emoji.read_bytes()
    for pad, start in ((END, "5f120510"), (EXCLAMATION, "c748fe60")):
        write_tokenizer(clip_tokenizer(pad), tmp_path / "clip.json")
        assert hashlib.sha256((tmp_path / "clip.json").read_bytes()).hexdigest()[:8] == start


@pytest.mark.parametrize("pad", [END, EXCLAMATION])
def test_written_tokenizers_give_the_words_of_transformers(tmp_path: Path, pad: str) -> None:
    from tokenizers import Tokenizer

    theirs = clip_tokenizer(pad)
    assert isinstance(theirs, CLIPTokenizerFast)
    write_tokenizer(theirs, tmp_path / "clip.json")
    ours = Tokenizer.from_file(str(tmp_path / "clip.json"))
    texts = ["a red apple", "Ünïcödé naïve 世界 🙂", "it's 100% !!! <|endoftext|> x", "", " a\tb\nc ", "don't-stop_1.5"]
    for text in texts:
        assert ours.encode(text).ids == theirs(text).input_ids


def graph_of(kind: int) -> onnx.ModelProto:
    """x -> Mul -> Cast to ``kind`` -> Add -> y."""
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["a"]),
        helper.make_node("Cast", ["a"], ["b"], to=kind),
        helper.make_node("Cast", ["b"], ["c"], to=kind),
        helper.make_node("Add", ["c", "c"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_value_info("y", kind, ["n"])
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=[helper.make_opsetid("", 18)])


@pytest.mark.parametrize(("kind", "left"), [(TensorProto.FLOAT, 0), (TensorProto.DOUBLE, 1)])
def test_casts_that_change_nothing_are_dropped(kind: int, left: int) -> None:
    from onnx.reference import ReferenceEvaluator

    model, values = graph_of(kind), {"x": np.array([1.5, -2], np.float32)}
    expected = ReferenceEvaluator(model).run(None, values)[0]
    drop_idle_casts(model)
    assert [n.op_type for n in model.graph.node].count("Cast") == left
    onnx.checker.check_model(model, full_check=True)
    found = ReferenceEvaluator(model).run(None, values)[0]
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_a_cast_that_gives_an_output_stays() -> None:
    model = graph_of(TensorProto.FLOAT)
    del model.graph.node[3]
    model.graph.output[0].name = "c"
    drop_idle_casts(model)
    assert model.graph.node[-1].output[0] == "c"
    onnx.checker.check_model(model, full_check=True)
