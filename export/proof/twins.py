"""The reference pictures are drawn by diffusers' scheduler: the source's own, or the twin of another sampler."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgediff.sampling.names import from_config, resolve

from ..sources.base import Source
from ..sources.loading import model_class

MULTISTEP, UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
# diffusers' class and settings for each sampler that it has as well.
TWINS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "deis": ("DEISMultistepScheduler", {"solver_order": 2}),
    "deis_3": ("DEISMultistepScheduler", {"solver_order": 3}),
    "dpmpp_2m": (MULTISTEP, {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}),
    "dpmpp_2m_sde": (MULTISTEP, {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}),
    "dpmpp_sde": ("DPMSolverSDEScheduler", {}),
    "unipc": (UNIPC, {"solver_order": 2, "solver_type": "bh2", "predict_x0": True}),
    "unipc_3": (UNIPC, {"solver_order": 3, "solver_type": "bh2", "predict_x0": True}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
TIMESTEPS = ("leading", "trailing", "linspace")
SIGMAS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas"}
# What diffusers' classes do not take, take for something else, or do in another way than the method says.
UNFIT_PREDICTION = {
    "plms": ("v_prediction", "sample"),  # it averages raw outputs of several levels
    **dict.fromkeys(("euler", "euler_a", "dpm2", "dpm2_a"), ("sample",)),
}
UNFIT_SPACING = {
    **dict.fromkeys(("ddim", "plms"), ("linspace",)),  # they step to t - 1000/N, wherever the next t is
    **dict.fromkeys(("deis", "deis_3"), ("karras", "exponential")),  # their last step stays where it is
    **dict.fromkeys(("dpm2", "dpm2_a"), ("karras",)),  # they round every second timestep
}
# With zero terminal SNR they start at sigma 4096 and draw noise there: float32 loses what the picture needs.
UNFIT_ZERO_SNR = ("euler_a", "dpm2_a", "dpmpp_2m_sde", "dpmpp_sde")


@dataclass(frozen=True)
class Twin:
    """A scheduler of diffusers, and what a call of ours says to run the same.

    Attributes:
        scheduler: diffusers' object.
        call: arguments of ours; empty where the bundle's defaults are the same already.
        note: what has to be said; empty where there is nothing.
    """

    scheduler: Any
    call: dict[str, Any] = field(default_factory=dict)
    note: str = ""


def find_twin(source: Source, facts: Mapping[str, Any]) -> Twin:
    """Find the scheduler that draws the reference: the source's own where the bundle's default sampler is its twin."""
    own = source.reference_scheduler()
    schedule = facts["schedule"]
    sampler, spacing = resolve(facts["defaults"]["sampler"])
    flagged = next((key for key, flag in SIGMAS.items() if schedule.get(flag)), schedule["timestep_spacing"])
    spacing = spacing or flagged
    prediction = schedule["prediction_type"]
    name = type(own).__name__
    twin = from_config({**own.config, "_class_name": name, "skip_prk_steps": True})
    zero = schedule["rescale_betas_zero_snr"]
    same = twin is not None and twin[0] == sampler and (twin[1] or spacing) == spacing
    # diffusers' UniPC of full order divides by 0 at the last step.
    broken = ("unipc", "unipc_3") if own.config.get("lower_order_final") is False else ()
    if same and sampler not in broken and _fits(sampler, spacing, prediction, zero, True):
        return Twin(own)
    exact = [("ddim", "trailing")] if zero else []  # its class takes the limit itself
    for other, levels in ((sampler, spacing), *exact, ("euler", spacing), ("euler", "trailing"), ("ddim", "trailing")):
        if other not in broken and _fits(other, levels, prediction, zero):
            call = {} if (other, levels) == (sampler, spacing) else {"sampler": other, "spacing": levels}
            made = _make(other, levels, own, schedule)
            why = f"the pictures are proved with diffusers' {type(made).__name__}, {levels}"
            return Twin(made, call, f"{why}, not with the source's {name} (the bundle's sampler is {sampler})")
    raise AssertionError("ddim takes every prediction type")


def _fits(sampler: str, spacing: str, prediction: str, zero: bool, own: bool = False) -> bool:
    """Whether diffusers is a reference for a sampler on a spacing; ``own`` for the source's own scheduler."""
    if zero and sampler in UNFIT_ZERO_SNR:
        return False
    if prediction in UNFIT_PREDICTION.get(sampler, ()) or spacing in UNFIT_SPACING.get(sampler, ()):
        return False
    if own:
        return True
    if sampler not in TWINS:
        return False
    if sampler in ("lcm", "tcd"):
        return True  # they have their own spacing alone, here and there
    return spacing in TIMESTEPS or (spacing in SIGMAS and SIGMAS[spacing] in _taken(TWINS[sampler][0]))


def _taken(name: str) -> Mapping[str, Any]:
    return inspect.signature(model_class(name).__init__).parameters


def _make(sampler: str, spacing: str, own: Any, schedule: Mapping[str, Any]) -> Any:
    """Make diffusers' scheduler of a sampler, on the schedule that the source's scheduler has."""
    name, settings = TWINS[sampler]
    asked = {
        **{flag: spacing == key for key, flag in SIGMAS.items()},
        "timestep_spacing": spacing if spacing in TIMESTEPS else schedule["timestep_spacing"],
        "set_alpha_to_one": schedule["set_alpha_to_one"],
        "steps_offset": schedule["steps_offset"],
        **settings,
    }
    if asked["timestep_spacing"] not in TIMESTEPS:
        asked["timestep_spacing"] = own.config.get("timestep_spacing", "leading")
    if not own.config.get("clip_sample"):
        asked["clip_sample"] = False
    taken = _taken(name)
    config = {key: value for key, value in own.config.items() if key in taken and not key.startswith("use_")}
    return model_class(name)(**{**config, **{key: value for key, value in asked.items() if key in taken}})
