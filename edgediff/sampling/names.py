"""The names that people know samplers by: diffusers' classes, A1111's labels, ComfyUI's keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from ..errors import ArgumentError, choices, shown
from .samplers import SAMPLERS
from .schedule import SPACINGS

# The keys of SAMPLERS, for type checkers and completion.
SamplerName = Literal[
    "ddim",
    "ddpm",
    "euler",
    "euler_a",
    "heun",
    "dpm2",
    "dpm2_a",
    "lms",
    "plms",
    "deis",
    "deis_3",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
    "dpmpp_2s_a",
    "dpmpp_sde",
    "unipc",
    "unipc_3",
    "lcm",
    "tcd",
]
DIFFUSERS = {
    "DDIMScheduler": "ddim",
    "DDIMParallelScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DDPMParallelScheduler": "ddpm",
    "EulerDiscreteScheduler": "euler",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "heun",
    "FlowMatchHeunDiscreteScheduler": "heun",
    "KDPM2DiscreteScheduler": "dpm2",
    "KDPM2AncestralDiscreteScheduler": "dpm2_a",
    "LMSDiscreteScheduler": "lms",
    "PNDMScheduler": "plms",
    "DEISMultistepScheduler": "deis",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "UniPCMultistepScheduler": "unipc",
    "LCMScheduler": "lcm",
    "TCDScheduler": "tcd",
}
# What DPMSolverMultistepScheduler is, by algorithm_type and solver_order. Its third order is another method than
# k-diffusion's 3M.
MULTISTEP = {
    ("dpmsolver++", 2): "dpmpp_2m",
    ("sde-dpmsolver++", 2): "dpmpp_2m_sde",
}
# Besides every label and key of SAMPLERS itself.
OTHERS = {
    "pndm": "plms",
    "euler ancestral": "euler_a",
    "dpm2 ancestral": "dpm2_a",
    "dpm 2": "dpm2",
    "dpm 2 a": "dpm2_a",
    "dpm 2 ancestral": "dpm2_a",
    "dpm++ 2s ancestral": "dpmpp_2s_a",
    "uni pc bh2": "unipc_3",
    "flow match euler": "euler",
}
# A1111 writes the spacing ("schedule type") behind the sampler; "automatic" leaves it to sampler and model.
ENDINGS = {
    "karras": "karras",
    "exponential": "exponential",
    "simple": "simple",
    "normal": "normal",
    "sgm uniform": "sgm_uniform",
    "align your steps": "ays",
    "ays": "ays",
    "automatic": None,
}


def _plain(name: str) -> str:
    """Letters, digits and plus signs, lower case, one blank between words; ``pp`` is ComfyUI's plus signs."""
    name = re.sub(r"(?<=dpm)pp\b|(?<=dpm)pp(?=_)", "++", name.strip().lower())
    return " ".join(re.findall(r"[a-z0-9+]+", name))


KNOWN = {
    **{_plain(key): key for key in SAMPLERS},
    **{_plain(sampler.label): key for key, sampler in SAMPLERS.items()},
    **{_plain(name): key for name, key in (DIFFUSERS | OTHERS).items()},
}


def resolve(name: str) -> tuple[str, str | None]:
    """``(key of SAMPLERS, spacing)``; the spacing is None unless the name ends in one ("DPM++ 2M Karras").

    Raises:
        ArgumentError: a name that nobody uses, with the choices.
    """
    plain = _plain(name) if isinstance(name, str) else ""
    if plain in KNOWN:
        return KNOWN[plain], None
    for ending, spacing in ENDINGS.items():
        if plain.endswith(" " + ending) and (front := plain.removesuffix(" " + ending)) in KNOWN:
            return KNOWN[front], spacing
    fronts = [k for k in KNOWN if plain.startswith(k + " ")]
    if fronts:
        rest = plain.removeprefix(max(fronts, key=len)).strip()
        raise ArgumentError(f"sampler {shown(name)} ends in no spacing: {shown(rest)}; choose from {choices(SPACINGS)}")
    raise ArgumentError(
        f"no sampler {shown(name)}; choose from {choices(SAMPLERS)} "
        "(diffusers' class names and A1111's labels work too)"
    )


def resolve_spacing(name: str) -> str:
    """One of ``schedule.SPACINGS``, by our name or A1111's label; ``ArgumentError`` otherwise."""
    plain = _plain(name) if isinstance(name, str) else ""
    for spacing in SPACINGS:
        if plain == _plain(spacing) or (plain in ENDINGS and ENDINGS[plain] == spacing):
            return spacing
    advice = "" if isinstance(name, str) else "; explicit levels are given as timesteps or sigmas"
    raise ArgumentError(f"no spacing {shown(name)}; choose from {choices(SPACINGS)}{advice}")


def from_config(config: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """Sampler and spacing of a diffusers scheduler config; None where there is no twin here.

    Args:
        config: what ``scheduler_config.json`` holds, ``_class_name`` included.
    """
    key = DIFFUSERS.get(str(config.get("_class_name")))
    get = {k: v for k, v in config.items() if v is not None}.get
    order = get("solver_order", 2)
    if key == "dpmpp_2m":
        key = MULTISTEP.get((get("algorithm_type", "dpmsolver++"), order))
    elif key in ("deis", "unipc"):
        key = {2: key, 3: f"{key}_3"}.get(order)
    foreign = (
        str(get("variance_type", "")).startswith("learned")
        or (key in ("deis", "deis_3") and str(get("algorithm_type", "deis")).startswith("sde"))
        or (key in ("dpmpp_2m", "dpmpp_2m_sde") and get("solver_type", "midpoint") != "midpoint")
        or (key in ("unipc", "unipc_3") and (get("solver_type", "bh2") == "bh1" or not get("predict_x0", True)))
        or (key in ("unipc", "unipc_3") and get("disable_corrector"))
        or (key == "plms" and not get("skip_prk_steps", False))
        or (key == "ddpm" and get("variance_type", "fixed_small") != "fixed_small")
        # diffusers' TCD clips x0 and keeps the noise estimate that goes with the unclipped one.
        or (key == "tcd" and get("clip_sample", False))
    )
    if key is None or foreign:
        return None
    for setting, spacing in (("use_karras_sigmas", "karras"), ("use_exponential_sigmas", "exponential")):
        if get(setting, False):
            return key, spacing
    return key, None
