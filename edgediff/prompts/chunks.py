"""Prompt -> chunks of token ids and weights, as the text encoder reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32
from ..errors import ArgumentError, PromptError
from .textual_inversion import Embeddings
from .tokenizer import Tokenizer
from .weights import parse

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Token:
    """A token is a piece of a prompt. ``start`` is the index in the prompt of the first character that it came from;
    ``joined`` tokens stay in one chunk with the one before.
    """

    id: int
    weight: float
    start: int
    joined: bool = False


def chunk(
    sections: Sequence[Sequence[Token]], size: int, comma: int | None = None, backtrack: int = 20
) -> list[list[Token]]:
    """Chunks of 1 .. ``size`` tokens; a section begins a new one, and a prompt without tokens is one empty chunk.

    Where a section overflows a chunk whose last ``comma`` is among its last ``backtrack`` tokens, what follows that
    comma moves to the next chunk, so that a phrase stays whole. If the next token is itself a comma, the phrase ends
    with the chunk and nothing moves (both as in AUTOMATIC1111). Joined tokens move together, unless they are longer
    than a chunk. Empty sections make no chunks (AUTOMATIC1111 reads them as empty ones).
    """
    if size < 1:
        raise ArgumentError(f"size is {size}; a chunk must take at least 1 token")
    chunks = []
    for section in sections:
        start = 0
        while start < len(section):
            end = start + size
            if end < len(section) and section[end].id != comma:
                nearest = range(end - 1, max(start, end - backtrack) - 1, -1)
                end = next((i + 1 for i in nearest if section[i].id == comma), end)
            whole = next((i for i in range(min(end, len(section) - 1), start, -1) if not section[i].joined), start)
            if end < len(section) and whole > start:
                end = whole
            chunks.append(list(section[start:end]))
            start = end
    return chunks or [[]]


def limit(chunks: Sequence[list[Token]], max_chunks: int | None) -> tuple[list[list[Token]], int | None]:
    """At most ``max_chunks`` chunks, and where in the prompt the first token begins that was cut (None: none was)."""
    if max_chunks is None:
        return list(chunks), None
    if max_chunks < 1:
        raise ArgumentError(f"max_chunks is {max_chunks}; it must be at least 1, or None for no limit")
    cut = (token.start for rest in chunks[max_chunks:] for token in rest)
    return list(chunks[:max_chunks]), next(cut, None)


def pack(chunk: Sequence[Token], size: int, begin: int, end: int, pad: int) -> tuple[Int64, Float32]:
    """Ids, int64 (size + 2,): begin, at most ``size`` tokens, end, padding; and weights, float32 (size + 2,)."""
    if len(chunk) > size:
        raise ArgumentError(f"the chunk has {len(chunk)} tokens; it must have at most {size}")
    ids = np.full(size + 2, pad, np.int64)
    weights = np.ones(size + 2, np.float32)
    after = len(chunk) + 1
    ids[0], ids[after] = begin, end
    ids[1:after] = [token.id for token in chunk]
    weights[1:after] = [token.weight for token in chunk]
    return ids, weights


MAX_CHUNKS = 64  # beyond it a pasted file is likelier than a prompt
MAX_CHARACTERS = 1_000_000  # of a prompt; 64 chunks of words are 30,000


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
class PromptChunks:
    """A prompt as chunks, and the words of it that were ``cut``."""

    chunks: tuple[Chunk, ...]
    cut: str = ""


def tokenise(
    prompt: str,
    tokenizer: Tokenizer,
    embeddings: Embeddings,
    syntax: str = "a1111",
    max_chunks: int | None = None,
    what: str = "prompt",
) -> PromptChunks:
    """A prompt of any length in chunks of the encoder's length, weights and textual inversions resolved; errors call it
    ``what``.

    Raises:
        PromptError: bad syntax of weights; more than ``MAX_CHARACTERS``; a text that the tokenizer cannot cut.
        ArgumentError: an unknown ``syntax``.
    """
    if len(prompt) > MAX_CHARACTERS:
        raise PromptError(f"the {what} has {len(prompt)} characters; it may have {MAX_CHARACTERS}")
    sections = []
    for spans in parse(prompt, syntax, what):
        tokens: list[Token] = []
        for span in spans:
            for k, (piece, at) in enumerate(embeddings.split(span.text)):
                ids = [(i, 0) for i in embeddings.ids[piece]] if k % 2 else tokenizer.tokens(piece)
                tokens += [
                    # The rows of one textual inversion belong together.
                    Token(i, span.weight, span.offsets[at + start], joined=bool(k % 2 and n))
                    for n, (i, start) in enumerate(ids)
                ]
        sections.append(tokens)
    size = tokenizer.max_length - 2
    most = MAX_CHUNKS if max_chunks is None else min(max_chunks, MAX_CHUNKS)
    chunks, cut = limit(chunk(sections, size, tokenizer.comma), most)
    packed = (pack(c, size, tokenizer.begin, tokenizer.end, tokenizer.pad_id) for c in chunks)
    return PromptChunks(tuple(Chunk(*both) for both in packed), "" if cut is None else prompt[cut:].strip())
