"""Textual inversions travel in the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.numpy import save

from edgediff.errors import ArgumentError
from edgediff.prompts.textual_inversion import A1111_KEY, SDXL_KEYS, Embeddings, read_embedding

from .base import Source, encoders_of

CarriedEmbedding = tuple[str, tuple[Any, ...]]  # a word, and its vectors for each text encoder


def read_embeddings(files: Sequence[tuple[str | None, Path]], source: Source) -> list[CarriedEmbedding]:
    """Read (word, vectors) of each file, checked against the source's text encoders; a word of None is the file's own.

    Raises:
        ArgumentError: a file that cannot be used, vectors of another width, or a word that was given twice.
    """
    embeddings = Embeddings([source.hollow(encoder).config.hidden_size for encoder, _ in encoders_of(source)])
    for word, path in files:
        own, vectors = read_embedding(path)
        word = own if word is None else word
        if word in embeddings.vectors:
            raise ArgumentError(f"two embeddings are named {word!r}; give one another word: WORD=FILE")
        embeddings = embeddings.add(word, vectors)
    return list(embeddings.vectors.items())


def store_embeddings(carried: Sequence[CarriedEmbedding], folder: Path) -> list[tuple[str, Path]]:
    """Write each as a safetensors file in ``folder``; return (word, path)."""
    out = []
    for k, (word, vectors) in enumerate(carried):
        path = folder / f"embedding_{k}.safetensors"
        keys = [A1111_KEY] if len(vectors) == 1 else SDXL_KEYS
        path.write_bytes(save(dict(zip(keys, vectors, strict=True))))
        out.append((word, path))
    return out
