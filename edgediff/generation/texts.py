"""The prompts of a call: checked, cut into chunks, and said where words do not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..bundle.manifest import Bundle
from ..errors import ArgumentError, BundleError, PromptError, PromptWarning, printable, shown, warn_caller
from ..prompts.chunks import PromptChunks, tokenise
from ..prompts.textual_inversion import Embeddings
from ..prompts.tokenizer import Tokenizer
from .arguments import MAX_IMAGES, Arguments


def check_texts(arguments: Arguments) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """A call's prompts and as many negative prompts. Raises ``PromptError`` for what is no text."""
    prompts = _texts("prompt", "" if arguments.prompt is None else arguments.prompt)
    if not prompts:
        raise PromptError("no prompt was given")
    negative_prompt = "" if arguments.negative_prompt is None else arguments.negative_prompt
    negatives = _texts("negative prompt", negative_prompt)
    if isinstance(negative_prompt, str):
        negatives *= len(prompts)
    if len(negatives) != len(prompts):
        raise PromptError(f"{len(prompts)} prompts need as many negative prompts; {len(negatives)} were given")
    return prompts, negatives


def tokenised(
    bundle: Bundle,
    tokenizers: Sequence[Tokenizer],
    embeddings: Embeddings,
    syntax: str,
    read: Mapping[str, Sequence[str]],
) -> dict[str, tuple[PromptChunks, ...]]:
    """The chunks of every text in ``read`` (by its kind, "prompt" for example), one for each tokenizer.

    Warns:
        PromptWarning: words were cut.

    Raises:
        PromptError: bad syntax of weights.
        BundleError: tokenizers that cut a text into different numbers of chunks.
    """
    texts: dict[str, tuple[PromptChunks, ...]] = {}
    for kind, some in read.items():
        unique = list(dict.fromkeys(some)) if tokenizers else []
        for k, prompt in enumerate(unique, 1):
            what = kind if len(unique) == 1 else f"{kind} {k}"
            texts[prompt] = both = tuple(
                tokenise(prompt, t, embeddings, syntax, bundle.max_chunks, what) for t in tokenizers
            )
            text = both[0]
            if any(len(other.chunks) != len(text.chunks) for other in both):
                raise BundleError(
                    f"bundle {bundle.name!r}: its tokenizers cut the {what} into different numbers of chunks"
                )
            if text.cut:
                warn_caller(
                    f"the {what} is longer than the {len(text.chunks) * (tokenizers[0].max_length - 2)} tokens that "
                    f"this model reads; cut: {_shown(text.cut)}",
                    PromptWarning,
                )
    return texts


def _texts(name: str, value: Any) -> tuple[str, ...]:
    if isinstance(value, (list, tuple)) and len(value) > MAX_IMAGES:
        raise ArgumentError(f"{len(value)} {name}s were given; one call makes at most {MAX_IMAGES} images")
    texts = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    for text in texts:
        if not isinstance(text, str):
            raise PromptError(f"the {name} is {shown(text)}; it must be text, or a list of texts")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(f"the {name} {shown(text)} holds bytes that are not UTF-8 text") from error
    return texts


def _shown(text: str, most: int = 400) -> str:
    """Quoted; of a long text, both ends."""
    if len(text) <= most:
        return printable(repr(text))
    ends = printable(repr(text[: most // 2])), printable(repr(text[-most // 2 :]))
    return f"{ends[0]} ... {ends[1]} ({len(text)} characters)"
