"""Files that hold more than their model reads, or name it as older versions did, pass; the rest is held by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgediff import BundleError
from edgediff_export.sources import weight_files
from edgediff_export.sources.folder import Folder
from edgediff_export.sources.strict import check_names

Tensors = dict[str, torch.Tensor]
OLDER = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def older(weights: Tensors) -> Tensors:
    """Attention's names of before ``to_q``."""
    out = {}
    for name, tensor in weights.items():
        for new, old in OLDER.items():
            name = name.replace(f".{new}.", f".{old}.") if "mid_block.attentions" in name else name
        out[name] = tensor
    return out


@pytest.mark.parametrize(
    ("component", "change"),
    [
        (
            "text_encoder",
            lambda w: (
                w
                | {"text_model.embeddings.position_ids": torch.arange(77), "logit_scale": torch.ones(())}
                | {"vision_model.embeddings.class_embedding": torch.ones(4), "text_projection.weight": torch.ones(2, 2)}
            ),
        ),
        ("vae", older),
    ],
)
def test_what_is_known_to_be_harmless(
    tiny_source: Path, tmp_path: Path, component: str, change: Callable[[Tensors], Tensors]
) -> None:
    source = Path(shutil.copytree(tiny_source, tmp_path / "source"))
    wanted = Folder(source).reference(component).state_dict()
    path = next((source / component).glob("*.safetensors"))
    plain = load_file(path)
    changed = change(plain)
    assert changed.keys() != plain.keys()
    save_file(changed, path, {"format": "pt"})
    Folder(source).check()
    found = Folder(source).reference(component).state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_whole_source_is_read_by_headers(tiny_source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one weight."""
    slices: list[str] = []
    plain = weight_files.safe_open

    class Header:
        def __init__(self, *arguments: object) -> None:
            self._file = plain(*arguments)

        def __enter__(self) -> Header:
            self._open = self._file.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self._file.__exit__(*error)

        def keys(self) -> list[str]:
            return list(self._open.keys())

        def get_slice(self, name: str) -> object:
            slices.append(name)
            return self._open.get_slice(name)

    monkeypatch.setattr(weight_files, "safe_open", Header)
    Folder(tiny_source).check()
    assert len(slices) > 300


def test_other_files_beside_the_weights_are_not_read(tiny_source: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_source, tmp_path / "source"))
    path = source / "unet" / "diffusion_pytorch_model.safetensors"
    (source / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"not read")
    path.with_suffix(".bin").write_bytes(b"not read")
    Folder(source).check()
    Folder(source).reference("unet")


class Attack:
    """Runs when it is unpickled, unless something stops it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.mark), "w")


@pytest.mark.parametrize("component", ["unet", "text_encoder", "vae"])
@pytest.mark.parametrize("early", [False, True], ids=["now", "before torch 1.6"])
def test_pickled_weights_are_not_read(tiny_source: Path, tmp_path: Path, component: str, early: bool) -> None:
    """The last of a program's own safeguards is torch's; we do not come to it."""
    source = Path(shutil.copytree(tiny_source, tmp_path / "source"))
    (path,) = (source / component).glob("*.safetensors")
    name = path.name.replace(".safetensors", ".bin").replace(
        "model.bin", "pytorch_model.bin" if component == "text_encoder" else "model.bin"
    )
    weights = load_file(path)
    path.unlink()
    torch.save(
        {**weights, "more": Attack(tmp_path / "mark")}, path.with_name(name), _use_new_zipfile_serialization=not early
    )
    for read in (
        Folder(source).check,
        lambda: Folder(source).weights(component),
        lambda: Folder(source).reference(component),
    ):
        with pytest.raises(BundleError, match=rf"{component}/{name} is pickled, .* save it again with save_pretrained"):
            read()
    assert not (tmp_path / "mark").exists()


def test_a_tokenizer_of_another_class(tiny_source: Path, tmp_path: Path) -> None:
    """A model's class in the tokenizer's place would read whatever weights lie in its folder."""
    source = Path(shutil.copytree(tiny_source, tmp_path / "source"))
    index = json.loads((source / "model_index.json").read_text())
    (source / "model_index.json").write_text(json.dumps(index | {"tokenizer": ["transformers", "CLIPTextModel"]}))
    shutil.copytree(source / "text_encoder", source / "tokenizer", dirs_exist_ok=True)
    assert type(Folder(source).reference_tokenizer("tokenizer")).__name__.startswith("CLIPTokenizer")


def test_the_index_names_the_pieces(tiny_source: Path, tmp_path: Path) -> None:
    """Pieces of an earlier save lie beside those that the index names."""
    source = Path(shutil.copytree(tiny_source, tmp_path / "source"))
    path = source / "unet" / "diffusion_pytorch_model.safetensors"
    weights, pieces = load_file(path), {}
    path.unlink()
    for count in (3, 2):
        for k, name in enumerate(weights):
            pieces[name] = f"{path.stem}-{k % count + 1:05d}-of-{count:05d}.safetensors"
        for piece in set(pieces.values()):
            own = {name: weights[name] * (count == 2) for name in weights if pieces[name] == piece}
            save_file(own, path.with_name(piece), {"format": "pt"})
    index = path.with_name(f"{path.name}.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": pieces}), encoding="utf-8")
    found = Folder(source).weights("unet")
    assert all(np.array_equal(found[name].read(), tensor) for name, tensor in weights.items())
    assert torch.equal(Folder(source).reference("unet").state_dict()["conv_in.bias"], weights["conv_in.bias"])
    path.with_name(pieces["conv_in.bias"]).unlink()
    with pytest.raises(BundleError, match=rf"index\.json names {pieces['conv_in.bias']}, which is not there"):
        Folder(source).check()
    index.write_text("[]", encoding="utf-8")
    with pytest.raises(BundleError, match=r"index\.json cannot be read as an index of weights"):
        Folder(source).check()


def test_an_exchanged_autoencoder_is_not_looked_at(tiny_source: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_source, tmp_path / "source"))
    path = source / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(BundleError, match="vae lacks"):
        Folder(source).check()
    Folder(source).check(["vae"])


def test_an_inner_name_more_or_less() -> None:
    """transformers writes ``text_model.`` or leaves it out, by its version."""
    for a, b in (("", "text_model."), ("text_model.", "")):
        check_names("text_encoder", Path("f"), {f"{a}x.weight": (2,)}, {f"{b}x.weight": (2,)})
    with pytest.raises(BundleError, match=r"f: text_encoder: x\.weight has shape \(3,\), its config asks for \(2,\)"):
        check_names("text_encoder", Path("f"), {"x.weight": (2,)}, {"text_model.x.weight": (3,)})
