"""Textual inversion (Gal et al. 2022, https://arxiv.org/abs/2208.01618): learned vectors that a word stands for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Float32
from ..checks import file_path
from ..errors import ArgumentError, EngineError, choices, shown
from ..files import read_regular
from ..looks import not_safetensors
from ..rust import panics_caught

MAX_FILE = 64 << 20  # bytes; embeddings have some hundred kB
MAX_ROWS = 1_024  # tokens that a word may stand for; published ones have 1 to 75
MAX_WORD = 256  # characters
A1111_KEY, SDXL_KEYS = "emb_params", ("clip_l", "clip_g")


class Embeddings:
    """Words and their vectors, one row a token, one table a text encoder. Immutable: ``add`` gives another.

    Token ids below 0 name rows: -1 is row 0. A text encoder reads them from its input ``extra_embeddings``.

    Args:
        widths: of the vectors, one a text encoder.
        vectors: for each word, float32 (tokens, width) for each text encoder.
    """

    def __init__(self, widths: Sequence[int], vectors: Mapping[str, Sequence[Float32]] | None = None) -> None:
        self.widths = tuple(widths)
        self.vectors = {word: tuple(tables) for word, tables in (vectors or {}).items()}
        self.ids: dict[str, tuple[int, ...]] = {}
        row = 0
        for word, tables in self.vectors.items():
            self.ids[word] = tuple(-1 - k for k in range(row, row + len(tables[0])))
            row += len(tables[0])
        # At least one row: engines refuse empty inputs.
        empty = [] if row else [[np.zeros((1, width)) for width in self.widths]]
        self.tables: tuple[Float32, ...] = tuple(
            np.concatenate([tables[k] for tables in (*self.vectors.values(), *empty)]).astype(np.float32)
            for k in range(len(self.widths))
        )
        longest = sorted(self.vectors, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(_whole, longest))) if longest else None

    def add(self, word: str, vectors: Sequence[Float32]) -> Embeddings:
        """With ``word`` standing for ``vectors``, (tokens, width) for each text encoder, in place of what it stood for
        before.
        """
        written = isinstance(word, str) and 0 < len(word) <= MAX_WORD and word.isprintable()
        if not written or re.search(r"[\s()\[\]\\:]|\bBREAK\b", word):
            raise ArgumentError(
                f"token is {shown(word)}; it must be a word without blanks, brackets, colons, backslashes or BREAK, of "
                f"at most {MAX_WORD} characters that print"
            )
        if (widths := tuple(v.shape[1] for v in vectors)) != self.widths:
            raise ArgumentError(
                f"the embedding of {shown(word)} has width {_joined(widths)}; this model's text "
                f"encoder{'s have' if len(self.widths) > 1 else ' has'} {_joined(self.widths)}"
            )
        return Embeddings(self.widths, {**self.vectors, word: vectors})

    def remove(self, word: str) -> Embeddings:
        if not isinstance(word, str) or word not in self.vectors:
            raise ArgumentError(f"no embedding {shown(word)} is loaded; there are {choices(self.vectors) or 'none'}")
        return Embeddings(self.widths, {k: v for k, v in self.vectors.items() if k != word})

    def hashes(self, text: str) -> str:
        """``"word: hash, ..."`` of the words in ``text``, quoted as pictures carry it; empty where there are none."""
        words = dict.fromkeys(self._pattern.findall(text) if self._pattern else ())
        digests = (hashlib.sha256(b"".join(v.tobytes() for v in self.vectors[w])).hexdigest()[:12] for w in words)
        shown = (f"{word}: {digest}" for word, digest in zip(words, digests, strict=True))
        return f'"{", ".join(shown)}"' if words else ""

    def split(self, text: str) -> list[tuple[str, int]]:
        """``text`` cut at the words: ``(piece, index)``; every second piece is a word."""
        pieces, last = [], 0
        for match in self._pattern.finditer(text) if self._pattern else ():
            pieces += [(text[last : match.start()], last), (match[0], match.start())]
            last = match.end()
        return [*pieces, (text[last:], last)]


def _whole(word: str) -> str:
    """A pattern for ``word`` that is no part of a longer one."""
    before = r"(?<!\w)" if re.match(r"\w", word) else ""
    after = r"(?!\w)" if re.search(r"\w$", word) else ""
    return before + re.escape(word) + after


def _joined(widths: Sequence[int]) -> str:
    return " and ".join(map(str, widths))


def read_embedding(path: str | Path) -> tuple[str, tuple[Float32, ...]]:
    """``(word, vectors)`` from a safetensors file: A1111's (key emb_params; the word is the file's name), diffusers'
    (the key is the word), or SDXL's (keys clip_l and clip_g, the two text encoders'; the word is the file's name).
    Vectors are float32 (tokens, width), one array a text encoder.

    Raises:
        ArgumentError: no such file, not a safetensors file, or not one embedding of finite vectors.
        EngineError: the package safetensors is not installed.
    """
    path = file_path("path", path)
    try:
        from safetensors.numpy import load
    except ImportError as error:
        raise EngineError("the package safetensors is not installed; run: pip install safetensors") from error
    try:
        raw = read_regular(path, MAX_FILE)
    except (OSError, ValueError) as error:  # a NUL in the path
        raise ArgumentError(f"the embedding {path} cannot be read: {getattr(error, 'strerror', 0) or error}") from error
    try:
        with panics_caught():
            tensors: dict[str, Any] = load(raw)
    except MemoryError:
        raise
    except Exception as error:  # the library raises its own, and KeyError for types that NumPy lacks
        raise ArgumentError(not_safetensors(path, error)) from error
    word = path.stem
    if set(tensors) == set(SDXL_KEYS):
        both = tuple(_finite_vectors(path, key, tensors[key]) for key in SDXL_KEYS)
        if len(both[0]) != len(both[1]):
            raise ArgumentError(f"{path}: {' and '.join(SDXL_KEYS)} hold {len(both[0])} and {len(both[1])} tokens")
        return word, both
    if A1111_KEY in tensors:
        vectors = tensors[A1111_KEY]
    elif len(tensors) == 1:
        word, vectors = next(iter(tensors.items()))
    else:
        names = choices(name[:40] for name in sorted(tensors)[:5])
        raise ArgumentError(
            f"{path} holds {names or 'nothing'}; an embedding for one text encoder holds "
            f"{A1111_KEY}, or one tensor named by its word; for SDXL's two, {' and '.join(SDXL_KEYS)}"
        )
    return word, (_finite_vectors(path, word, vectors),)


def _finite_vectors(path: Path, word: str, vectors: Any) -> Float32:
    vectors = np.atleast_2d(vectors)
    if vectors.ndim != 2 or not vectors.size or vectors.dtype.kind != "f":
        raise ArgumentError(
            f"{path}: {shown(word)} has shape {vectors.shape} of {vectors.dtype}; it must be (tokens, width)"
        )
    with np.errstate(over="ignore"):  # seen below
        out: Float32 = vectors.astype(np.float32)
    if len(out) > MAX_ROWS:
        raise ArgumentError(f"{path}: {shown(word)} stands for {len(out)} tokens; it may stand for {MAX_ROWS}")
    if not np.isfinite(out).all():
        raise ArgumentError(f"{path}: {shown(word)} holds values that are not finite")
    return out
