"""The text inside a picture: prompt, seed and settings, in the form that A1111 writes and the field's tools read."""

from __future__ import annotations

import json

from ..bundle.manifest import Bundle
from ..version import __version__
from .request import Request


def parameters(bundle: Bundle, request: Request, k: int) -> str:
    """The text of picture ``k`` of a request: prompt, negative prompt, and the settings as the last line.

    A prompt keeps its newlines, as in A1111, so it may hold lines that look like settings. Readers that take the last
    line, as A1111 does, are not misled by them: nothing but this function writes there.
    """
    lines = [request.prompts[k]]
    if request.negatives[k]:
        lines.append(f"Negative prompt: {request.negatives[k]}")
    plan = request.plan
    scale = plan.guidance_scale if request.guidance_embedding is None else request.guidance_embedding
    facts: dict[str, object] = {
        "Steps": plan.intervals,
        "Sampler": plan.label,
        "Schedule type": plan.spacing,
        "CFG scale": f"{scale:g}" if isinstance(scale, float) else " ".join(f"{g:g}" for g in scale),
        "Seed": request.seeds[k],
        "Size": f"{request.width}x{request.height}",
        "Model hash": bundle.id,
        "Model": _quoted(bundle.name),
    }
    arguments = request.arguments.facts()
    hook = arguments.pop("Hook", None)
    facts |= arguments
    if hashes := request.embeddings.hashes(request.prompts[k] + " " + request.negatives[k]):
        facts["TI hashes"] = hashes
    if hook is not None:
        facts["Hook"] = hook
    facts["Version"] = f"edgediff {__version__}"
    if request.latents is not None and not plan.stochastic and request.masked is None:
        del facts["Seed"]  # it did not matter
    lines.append(", ".join(f"{name}: {value}" for name, value in facts.items()))
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """A value as A1111 writes it into the line of settings: in quotes where it could be taken for more of them."""
    plain = text.isprintable() and not any(c in text for c in ',:"')
    return text if plain else json.dumps(text)
