"""The text inside a picture: prompt, seed and settings, in the form that A1111 writes and the field's tools read."""

from __future__ import annotations

from ..bundle.manifest import Bundle
from ..version import __version__
from .request import Request


def parameters(bundle: Bundle, request: Request, k: int) -> str:
    """The text of picture ``k`` of a request."""
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
        "Model": bundle.name,
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
