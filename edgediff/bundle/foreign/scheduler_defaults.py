"""What diffusers' schedulers take for a setting that ``scheduler_config.json`` leaves out, by class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import BundleError, choices, shown

COMMON: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "steps_offset": 0,
}
# Stable Diffusion's betas, with and without its schedule.
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012}
SCALED: dict[str, Any] = BETAS | {"beta_schedule": "scaled_linear"}
LEADING: dict[str, Any] = {"timestep_spacing": "leading"}
LINSPACE: dict[str, Any] = {"timestep_spacing": "linspace"}
ZERO_SNR: dict[str, Any] = {"rescale_betas_zero_snr": False}
LEVELS: dict[str, Any] = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
CLIPS: dict[str, Any] = {"clip_sample": False, "clip_sample_range": 1.0}
THRESHOLDS: dict[str, Any] = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
SOLVER: dict[str, Any] = {
    **THRESHOLDS, **LEVELS, **LINSPACE, "solver_order": 2, "lower_order_final": True, "use_flow_sigmas": False,
    "flow_shift": 1.0, "use_dynamic_shifting": False, "time_shift_type": "exponential",
}  # fmt: skip
DISTILLED: dict[str, Any] = {
    **SCALED, **CLIPS, **THRESHOLDS, **LEADING, **ZERO_SNR, "set_alpha_to_one": True, "original_inference_steps": 50,
    "timestep_scaling": 10.0,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {**CLIPS, **THRESHOLDS, **LEADING, **ZERO_SNR, "clip_sample": True, "set_alpha_to_one": True},
    "DDPMScheduler": {
        **CLIPS, **THRESHOLDS, **LEADING, **ZERO_SNR, "clip_sample": True, "variance_type": "fixed_small",
    },
    "EulerDiscreteScheduler": {
        **LEVELS, **LINSPACE, **ZERO_SNR, "interpolation_type": "linear", "sigma_min": None, "sigma_max": None,
        "timestep_type": "discrete", "final_sigmas_type": "zero",
    },
    "EulerAncestralDiscreteScheduler": {**LINSPACE, **ZERO_SNR},
    "HeunDiscreteScheduler": {**BETAS, **LEVELS, **CLIPS, **LINSPACE},
    "KDPM2DiscreteScheduler": {**BETAS, **LEVELS, **LINSPACE},
    "KDPM2AncestralDiscreteScheduler": {**BETAS, **LEVELS, **LINSPACE},
    "LMSDiscreteScheduler": {**LEVELS, **LINSPACE},
    "PNDMScheduler": {**LEADING, "skip_prk_steps": False, "set_alpha_to_one": False},
    "DEISMultistepScheduler": {**SOLVER, "algorithm_type": "deis", "solver_type": "logrho"},
    "DPMSolverMultistepScheduler": {
        **SOLVER, **ZERO_SNR, "algorithm_type": "dpmsolver++", "solver_type": "midpoint", "euler_at_final": False,
        "use_lu_lambdas": False, "final_sigmas_type": "zero", "lambda_min_clipped": -math.inf, "variance_type": None,
    },
    "DPMSolverSDEScheduler": {**BETAS, **LEVELS, **LINSPACE, "noise_sampler_seed": None},
    "UniPCMultistepScheduler": {
        **SOLVER, **ZERO_SNR, "predict_x0": True, "solver_type": "bh2", "disable_corrector": [], "solver_p": None,
        "final_sigmas_type": "zero", "sigma_min": None, "sigma_max": None, "shift_terminal": None,
    },
    "LCMScheduler": DISTILLED,
    "TCDScheduler": DISTILLED,
}  # fmt: skip
OWN |= {f"{name}ParallelScheduler": OWN[f"{name}Scheduler"] for name in ("DDIM", "DDPM")}
DEFAULTS: dict[str, dict[str, Any]] = {name: COMMON | own for name, own in OWN.items()}


def completed(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return a scheduler's config with every setting that it leaves out.

    Args:
        config: what ``scheduler_config.json`` holds.
        path: of the file, for messages.

    Raises:
        BundleError: a class whose defaults are not known, and that leaves one out that the schedule needs.
    """
    name = config.get("_class_name")
    if not isinstance(name, str):
        raise BundleError(f"{path}: _class_name is {shown(name)}; it must be the name of a scheduler")
    if name in DEFAULTS:
        return DEFAULTS[name] | dict(config)
    if missing := [key for key in COMMON if key not in config and key != "trained_betas"]:
        raise BundleError(
            f"{path}: {shown(name)} is no scheduler that this version knows, and leaves {missing[0]} out; it knows "
            f"{choices(DEFAULTS)}"
        )
    return dict(config)
