"""Textual inversion files and words: what is read, matched and refused. diffusers judges the pictures."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import edgediff
from edgediff import ArgumentError, BundleError
from edgediff.prompts.textual_inversion import MAX_FILE, Embeddings, read_embedding


def ones(rows: int, width: int = 4) -> np.ndarray:
    return np.ones((rows, width), np.float32)


def test_rows_and_ids() -> None:
    some = Embeddings([4]).add("cat", [ones(1)]).add("<style>", [2 * ones(3)])
    assert some.ids == {"cat": (-1,), "<style>": (-2, -3, -4)}
    np.testing.assert_array_equal(some.tables[0], [[1] * 4, [2] * 4, [2] * 4, [2] * 4])
    assert some.tables[0].dtype == np.float32
    less = some.remove("cat")
    assert less.ids == {"<style>": (-1, -2, -3)}
    assert Embeddings([4]).tables[0].shape == (1, 4)
    assert some.add("cat", [5 * ones(2)]).ids["cat"] == (-1, -2)
    assert some.ids["cat"] == (-1,)


def test_words_are_found_whole() -> None:
    some = Embeddings([4]).add("cat", [ones(1)]).add("cat-2", [ones(1)]).add("<a>", [ones(1)])
    assert some.split("cat, cats cat-2<a>cat") == [
        ("", 0),
        ("cat", 0),
        (", cats ", 3),
        ("cat-2", 10),
        ("", 15),
        ("<a>", 15),
        ("", 18),
        ("cat", 18),
        ("", 21),
    ]
    assert Embeddings([4]).split("a cat") == [("a cat", 0)]


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_files(tmp_path: Path, kind: type) -> None:
    values = np.arange(8, dtype=kind).reshape(2, 4)
    save_file({"emb_params": values}, tmp_path / "my-style.safetensors")
    save_file({"<toy>": values[0]}, tmp_path / "b.safetensors")
    word, (vectors,) = read_embedding(tmp_path / "my-style.safetensors")
    assert word == "my-style"
    np.testing.assert_array_equal(vectors, values)
    assert vectors.dtype == np.float32
    word, (vectors,) = read_embedding(str(tmp_path / "b.safetensors"))
    assert (word, vectors.shape) == ("<toy>", (1, 4))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"clip_l": ones(1), "clip_h": ones(1)}, "holds clip_h, clip_l; an embedding for one text encoder"),
        ({"emb_params": np.ones((1, 2, 3), np.float32)}, r"has shape \(1, 2, 3\)"),
        ({"emb_params": np.ones((1, 4), np.int64)}, "of int64"),
        ({"emb_params": np.full((1, 4), np.nan, np.float32)}, "not finite"),
        ({"emb_params": np.full((1, 4), 1e39)}, "not finite"),
        ({"emb_params": np.ones((0, 4), np.float32)}, r"has shape \(0, 4\)"),
    ],
)
def test_bad_files(tmp_path: Path, tensors: dict[str, np.ndarray], said: str) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(ArgumentError, match=said):
        read_embedding(tmp_path / "a.safetensors")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="cannot be read: No such file"):
        read_embedding(tmp_path / "none.safetensors")
    (tmp_path / "a.pt").write_bytes(b"PK\3\4 a pickle, which is never opened")
    with pytest.raises(ArgumentError, match="path is None; it must be a path"):
        read_embedding(None)  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=r"no embedding \['x'\] is loaded"):
        Embeddings([4]).remove(["x"])  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="is not a safetensors file"):
        read_embedding(tmp_path / "a.pt")


@pytest.mark.parametrize("word", ["", "two words", "(a)", "a:b", "\\a", "my-BREAK", None])
def test_words_that_cannot_stand(word: object) -> None:
    with pytest.raises(ArgumentError, match="must be a word without blanks"):
        Embeddings([4]).add(word, [ones(1)])  # type: ignore[arg-type]


def test_vectors_of_a_word_stay_in_one_chunk(tiny_bundle: Path, tmp_path: Path) -> None:
    """74 tokens, then a word of three: it begins the second chunk."""
    from edgediff.prompts.chunks import tokenise

    save_file({"emb_params": ones(3, 32)}, tmp_path / "dotty.safetensors")
    pipe = edgediff.load(tiny_bundle)
    pipe.load_textual_inversion(tmp_path / "dotty.safetensors")
    text = tokenise("cat " * 74 + "dotty cat", pipe._open_tokenizers()[0], pipe._textual_inversions())
    assert [c.ids[1:76].min() for c in text.chunks] == [text.chunks[0].ids[1], -3]
    assert text.chunks[1].ids[1:5].tolist() == [-1, -2, -3, text.chunks[0].ids[1]]


def test_wrong_width(tiny_bundle: Path, tmp_path: Path) -> None:
    save_file({"emb_params": ones(1, 33)}, tmp_path / "wide.safetensors")
    pipe = edgediff.load(tiny_bundle)
    with pytest.raises(ArgumentError, match="'wide' has width 33; this model's text encoder has 32"):
        pipe.load_textual_inversion(tmp_path / "wide.safetensors")
    with pytest.raises(ArgumentError, match="no embedding 'wide' is loaded; there are none"):
        pipe.unload_textual_inversion("wide")


def test_a_bundle_without_the_input(one_chunk: Path, tmp_path: Path) -> None:
    import json

    manifest = json.loads((one_chunk / "bundle.json").read_text(encoding="utf-8"))
    part = manifest["parts"]["text_encoder"]
    part["inputs"], part["outputs"] = part["inputs"][:1], part["outputs"][:1]
    (one_chunk / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    save_file({"emb_params": ones(1, 32)}, tmp_path / "a.safetensors")
    pipe = edgediff.load(one_chunk)
    with pytest.raises(BundleError, match="no input extra_embeddings; export it again"):
        pipe.load_textual_inversion(tmp_path / "a.safetensors")
    with pytest.raises(ArgumentError, match="clip_skip is 1; the text encoder of bundle 'tiny' offers 0"):
        pipe.stream("a cat", clip_skip=1)


@pytest.mark.parametrize("word", ["a\x1b", "a\x7f", "a\u202e", "\ud800", "a\0", "x" * 257])
def test_words_that_a_terminal_would_obey(word: str) -> None:
    with pytest.raises(ArgumentError, match="characters that print") as caught:
        Embeddings([4]).add(word, [ones(1)])
    assert str(caught.value).isprintable()


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero here")
def test_files_without_an_end(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="it is no regular file"):
        read_embedding("/dev/zero")
    with (tmp_path / "long.safetensors").open("wb") as f:
        f.truncate(1 << 40)
    with pytest.raises(ArgumentError, match=f"it holds more than {MAX_FILE} bytes"):
        read_embedding(tmp_path / "long.safetensors")
    for path in ("a\0b", "a" * 10**6):
        with pytest.raises(ArgumentError, match="a path has at most 4096 characters, and no NUL"):
            read_embedding(path)


def test_a_word_of_more_tokens_than_anybody_trains(tmp_path: Path) -> None:
    save_file({"emb_params": ones(1025)}, tmp_path / "a.safetensors")
    with pytest.raises(ArgumentError, match="'a' stands for 1025 tokens; it may stand for 1024"):
        read_embedding(tmp_path / "a.safetensors")


def test_mutated_files(tmp_path: Path) -> None:
    """500 files with bits and bytes changed, most in the header: vectors, or a typed error."""
    path = tmp_path / "a.safetensors"
    save_file({"emb_params": ones(2)}, path)
    raw, chosen, read = path.read_bytes(), random.Random(0), 0
    for _ in range(500):
        data = bytearray(raw)
        for _ in range(chosen.choice((1, 2, 4))):
            at = chosen.randrange(len(data))
            if chosen.random() < 0.5:
                data[at] = chosen.randrange(256)
            else:
                del data[at : at + chosen.choice((1, 8))]
        path.write_bytes(data)
        with contextlib.suppress(ArgumentError):
            read += np.isfinite(read_embedding(path)[1][0]).all()
    assert 5 < read < 495
