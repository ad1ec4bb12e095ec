"""Prompt -> chunks of token ids and weights, as the text encoder reads them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .embeddings import Embeddings
from .prompt import Token, chunk, limit, pack, parse
from .tokenizer import Tokenizer

MAX_CHUNKS = 64  # beyond it a pasted file is likelier than a prompt


@dataclass(frozen=True)
class Chunk:
    """What the text encoder reads at once: ids int64 (max_length,), weights float32 (max_length,)."""

    ids: NDArray[np.int64]
    weights: NDArray[np.float32]

    @property
    def key(self) -> bytes:
        """Equal for chunks that the encoder sees alike."""
        return self.ids.tobytes()


@dataclass(frozen=True)
class Text:
    """A prompt as chunks, the words of it that were ``cut``, and whether it has no token at all."""

    chunks: tuple[Chunk, ...]
    cut: str = ""
    empty: bool = False


def tokenise(
    prompt: str,
    tokenizer: Tokenizer,
    embeddings: Embeddings,
    syntax: str = "a1111",
    max_chunks: int | None = None,
    what: str = "prompt",
) -> Text:
    """A prompt of any length in chunks of the encoder's length, weights and textual inversions resolved; errors call it
    ``what``.

    Raises:
        PromptError: bad syntax of weights.
        ArgumentError: an unknown ``syntax``.
    """
    sections = []
    for spans in parse(prompt, syntax, what):
        tokens: list[Token] = []
        for span in spans:
            for k, (piece, at) in enumerate(embeddings.split(span.text)):
                found = [(i, 0) for i in embeddings.ids[piece]] if k % 2 else tokenizer.tokens(piece)
                tokens += [
                    # The rows of one textual inversion belong together.
                    Token(i, span.weight, span.offsets[at + start], joined=bool(k % 2 and n))
                    for n, (i, start) in enumerate(found)
                ]
        sections.append(tokens)
    size = tokenizer.max_length - 2
    most = MAX_CHUNKS if max_chunks is None else min(max_chunks, MAX_CHUNKS)
    chunks, cut = limit(chunk(sections, size, tokenizer.comma), most)
    packed = (pack(c, size, tokenizer.begin, tokenizer.end, tokenizer.pad_id) for c in chunks)
    return Text(tuple(Chunk(*both) for both in packed), "" if cut is None else prompt[cut:].strip(), not any(chunks))
