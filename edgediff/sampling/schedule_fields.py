"""What the fields of a schedule may be."""

from __future__ import annotations

import math
from typing import Any

from ..checks import flag, is_number, is_whole
from ..errors import ArgumentError, shown

MAX_TIMESTEPS = 1_000_000
FLAGS = (
    *("set_alpha_to_one", "rescale_betas_zero_snr", "use_karras_sigmas", "use_exponential_sigmas"),
    "lower_order_final",
)
# Name, least, greatest, and what models have.
WHOLE = (
    ("num_train_timesteps", 2, "1000"),
    ("steps_offset", 0, "0 or 1"),
    ("original_inference_steps", 1, "50"),
)
NUMBERS = (("shift", 0.01, 100.0, "1 or 3"), ("timestep_scaling", 1e-6, 1e6, "10"))


def check_fields(schedule: Any) -> None:
    """Refuse fields of a ``Schedule`` of another type, or out of range, by ``ArgumentError``. Names are left."""
    for name in FLAGS:
        flag(name, getattr(schedule, name))
    for name, least, usual in WHOLE:
        value = getattr(schedule, name)
        if not is_whole(value, least, MAX_TIMESTEPS):
            raise ArgumentError(
                f"{name} is {shown(value)}; it must be a whole number, {least} .. {MAX_TIMESTEPS} (usually {usual})"
            )
    for name, low, high, usual in NUMBERS:
        value = getattr(schedule, name)
        if not is_number(value, low, high):
            raise ArgumentError(f"{name} is {shown(value)}; it must be a number, {low:g} .. {high:g} (usually {usual})")
    start, end = schedule.beta_start, schedule.beta_end
    if not (is_number(start, 0, 1) and is_number(end, 0, 1) and 0 < float(start) <= float(end) < 1):
        raise ArgumentError(
            f"betas run from {shown(start)} to {shown(end)}; they must satisfy 0 < beta_start <= beta_end < 1"
        )
    if schedule.use_karras_sigmas and schedule.use_exponential_sigmas:
        raise ArgumentError("use_karras_sigmas and use_exponential_sigmas are both true; choose one")
    cut = schedule.lambda_min_clipped
    if cut is not None and not (is_number(cut, -1e6, 1e6) or (is_number(cut) and cut == -math.inf)):
        raise ArgumentError(f"lambda_min_clipped is {shown(cut)}; it must be a number, or -inf for none")
