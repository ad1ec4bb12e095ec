"""Prompts -> what the U-Net is told, by the text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32, require_finite
from ..engines.choose import Parts
from ..errors import BundleError, EngineError, choices
from ..prompts.chunks import Chunk
from ..prompts.weights import emphasise
from .conditioning import Condition, Conditioning, embed_guidance, grouped
from .request import Request


def encode_prompts(request: Request, parts: Parts) -> Conditioning:
    """Run the text encoders on a request's prompts, and on its negative prompts where a row is guided.

    Raises:
        EngineError: a text encoder cannot run, or gave values that are not finite.
    """
    taken, guidance = parts.bundle.unet_input("timestep_cond"), None
    if request.guidance_embedding is not None and taken is not None:
        guidance = embed_guidance(request.guidance_embedding, int(taken.shape[-1]))
    conditional = _encode(request, parts, request.prompts)
    both = [*_encode(request, parts, request.negatives, True), *conditional] if request.plan.guided else []
    return Conditioning(len(conditional), grouped(both, guidance), grouped(conditional, guidance))


def _encode(request: Request, parts: Parts, prompts: Sequence[str], negative: bool = False) -> list[Condition]:
    """What the U-Net reads of each prompt: of every text encoder the states (tokens, width), chunk after chunk,
    weighted, side by side; and the last one's pooled state of the first chunk, where it is wanted.
    """
    bundle = parts.bundle
    hidden: list[list[Float32]] = [[] for _ in prompts]
    pooled: list[Float32 | None] = [None] * len(prompts)
    for k, part in enumerate(bundle.text_encoders):
        texts = [request.texts[p][k] for p in prompts]
        chunks: dict[bytes, Chunk] = {c.key: c for text in texts for c in text.chunks}
        inputs: dict[str, NDArray[Any]] = {"input_ids": np.stack([c.ids for c in chunks.values()])}
        if bundle.embedding_widths is not None:
            inputs["extra_embeddings"] = request.embeddings.tables[k]
        out = parts.run(part, **inputs)
        skip = request.arguments.negative_clip_skip if negative else request.arguments.clip_skip
        wanted = f"hidden_state_{skip}" if skip else "last_hidden_state"
        if (states := out.get(wanted)) is None:
            raise EngineError(f"{part} gave {choices(out)}; this call reads {wanted}")
        require_finite(part, states)
        by_chunk = dict(zip(chunks, states, strict=True))
        for some, text in zip(hidden, texts, strict=True):
            some.append(np.concatenate([emphasise(by_chunk[c.key], c.weights) for c in text.chunks]))
        if "text_embeds" in out:
            require_finite(part, out["text_embeds"])
            first = dict(zip(chunks, out["text_embeds"], strict=True))
            pooled = [first[text.chunks[0].key] for text in texts]
    if any(len({len(states) for states in some}) > 1 for some in hidden):
        lengths = choices(str(t.max_length) for t in bundle.text)
        raise BundleError(f"bundle {bundle.name!r}: its text encoders read {lengths} tokens; they must read as many")
    if bundle.unet_input("text_embeds") is None:
        pooled = [None] * len(prompts)
    sizes = request.sizes.negative if negative else request.sizes.positive
    blank = negative and bundle.zero_negative and request.arguments.negative_prompt is None
    return [
        Condition(
            _zeros(np.concatenate(some, axis=1), blank) if some else None,
            None if one is None else _zeros(one, blank),
            sizes,
        )
        for some, one in zip(hidden, pooled, strict=True)
    ]


def _zeros(states: Float32, blank: bool) -> Float32:
    return np.zeros_like(states) if blank else states
