"""Textual inversion (Gal et al. 2022, https://arxiv.org/abs/2208.01618): learned vectors that a word stands for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ArgumentError, EngineError, choices

Float32 = NDArray[np.float32]
A1111_KEY = "emb_params"


class Embeddings:
    """Words and their vectors, one row a token. Immutable: ``add`` gives another.

    Token ids below 0 name rows: -1 is row 0. The text encoder reads them from its input ``extra_embeddings``.
    """

    def __init__(self, width: int, vectors: Mapping[str, Float32] | None = None) -> None:
        self.width = width
        self.vectors = dict(vectors or {})
        self.ids: dict[str, tuple[int, ...]] = {}
        row = 0
        for word, value in self.vectors.items():
            self.ids[word] = tuple(-1 - k for k in range(row, row + len(value)))
            row += len(value)
        # At least one row: engines refuse empty inputs.
        self.table: Float32 = np.concatenate([*self.vectors.values(), *([] if row else [np.zeros((1, width))])]).astype(
            np.float32
        )
        longest = sorted(self.vectors, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(_whole, longest))) if longest else None

    def add(self, word: str, vectors: Float32) -> Embeddings:
        """With ``word`` standing for ``vectors``, (tokens, width), in place of what it stood for before."""
        if not isinstance(word, str) or not word or re.search(r"[\s()\[\]\\:]|\bBREAK\b", word):
            raise ArgumentError(
                f"token is {word!r}; it must be a word without blanks, brackets, colons, backslashes or BREAK"
            )
        if vectors.shape[1] != self.width:
            raise ArgumentError(
                f"the embedding of {word!r} has width {vectors.shape[1]}; this model's text encoder has {self.width}"
            )
        return Embeddings(self.width, {**self.vectors, word: vectors})

    def remove(self, word: str) -> Embeddings:
        if not isinstance(word, str) or word not in self.vectors:
            raise ArgumentError(f"no embedding {word!r} is loaded; there are {choices(self.vectors) or 'none'}")
        return Embeddings(self.width, {k: v for k, v in self.vectors.items() if k != word})

    def hashes(self, text: str) -> str:
        """``"word: hash, ..."`` of the words in ``text``, quoted as pictures carry it; empty where there are none."""
        words = dict.fromkeys(self._pattern.findall(text) if self._pattern else ())
        shown = (f"{word}: {hashlib.sha256(self.vectors[word].tobytes()).hexdigest()[:12]}" for word in words)
        return f'"{", ".join(shown)}"' if words else ""

    def split(self, text: str) -> list[tuple[str, int]]:
        """``text`` cut at the words: ``(piece, index)``; every second piece is a word."""
        pieces, last = [], 0
        for found in self._pattern.finditer(text) if self._pattern else ():
            pieces += [(text[last : found.start()], last), (found[0], found.start())]
            last = found.end()
        return [*pieces, (text[last:], last)]


def _whole(word: str) -> str:
    """A pattern for ``word`` that is no part of a longer one."""
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    after = r"(?!\w)" if re.search(r"\w$", word) else ""
    return before + re.escape(word) + after


def read_embedding(path: str | Path) -> tuple[str, Float32]:
    """``(word, vectors)`` from a safetensors file: A1111's (key emb_params; the word is the file's name) or diffusers'
    (the key is the word). Vectors are float32 (tokens, width).

    Raises:
        ArgumentError: no such file, not a safetensors file, or not one embedding of finite vectors.
        EngineError: the package safetensors is not installed.
    """
    if not isinstance(path, (str, Path)):
        raise ArgumentError(f"path is {path!r}; it must be the path of a safetensors file")
    path = Path(path)
    try:
        from safetensors.numpy import load
    except ImportError as error:
        raise EngineError("the package safetensors is not installed; run: pip install safetensors") from error
    try:
        tensors: dict[str, Any] = load(path.read_bytes())
    except OSError as error:
        raise ArgumentError(f"the embedding {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # the library raises its own, and KeyError for types that NumPy lacks
        raise ArgumentError(
            f"{path} is not a safetensors file with an embedding: {error} (a .pt file must be converted first)"
        ) from error
    word = path.stem
    if A1111_KEY in tensors:
        vectors = tensors[A1111_KEY]
    elif len(tensors) == 1:
        word, vectors = next(iter(tensors.items()))
    else:
        raise ArgumentError(
            f"{path} holds {choices(sorted(tensors)[:5]) or 'nothing'}; an embedding for one text encoder holds "
            f"{A1111_KEY}, or one tensor named by its word"
        )
    vectors = np.atleast_2d(vectors)
    if vectors.ndim != 2 or not vectors.size or vectors.dtype.kind != "f":
        raise ArgumentError(f"{path}: {word} has shape {vectors.shape} of {vectors.dtype}; it must be (tokens, width)")
    with np.errstate(over="ignore"):  # seen below
        vectors = vectors.astype(np.float32)
    if not np.isfinite(vectors).all():
        raise ArgumentError(f"{path}: {word} holds values that are not finite")
    return word, vectors
