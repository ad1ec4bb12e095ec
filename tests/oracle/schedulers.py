"""diffusers' schedulers as an oracle: each sampler x prediction type x spacing on a fixed nonlinear toy model.

diffusers rounds its noise levels to float32. For a comparison in float64 its modules see NumPy and torch with float64
in float32's place; formulas and control flow stay theirs.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

import edgediff
from edgediff.sampling.loop import run
from edgediff.sampling.planning import Plan, x0_from
from edgediff.sampling.rng import TorchCpuGenerator
from edgediff.sampling.schedule import Level

SHAPE = (2, 4, 9, 7)
MULTISTEP = "DPMSolverMultistepScheduler"
# Class and settings of each sampler's oracle.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
    "deis": ("DEISMultistepScheduler", {"solver_order": 2}),
    "deis_3": ("DEISMultistepScheduler", {"solver_order": 3}),
    "dpmpp_2m": (MULTISTEP, {}),
    "dpmpp_2m_sde": (MULTISTEP, {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_sde": ("DPMSolverSDEScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2}),
    "unipc_3": ("UniPCMultistepScheduler", {"solver_order": 3}),
    "lcm": ("LCMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
    "tcd": ("TCDScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
}
# TCD's paper has noise in every step; diffusers' pipelines have none unless they are told.
PAPER: dict[str, Any] = {"tcd": {"eta": 0.3}}
# No class in diffusers, or another method under the name: these are held against k-diffusion's own values.
K_DIFFUSION = ("dpmpp_2s_a", "dpmpp_3m_sde")
SIGMAS = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas"}
TIMESTEPS = ("leading", "trailing", "linspace")
# Flow matching: class and settings that take a straight schedule.
_STRAIGHT = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
FLOW: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "dpmpp_2m": (MULTISTEP, _STRAIGHT),
    "dpmpp_2m_sde": (MULTISTEP, _STRAIGHT | {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", _STRAIGHT),
    "unipc_3": ("UniPCMultistepScheduler", _STRAIGHT | {"solver_order": 3}),
}
# diffusers takes a prediction type that it does not know for epsilon, refuses it, or averages raw v outputs of
# different levels (PNDM). There the toy model's output is turned into epsilon first.
EPSILON_ONLY = {
    ("dpm2", "sample"),
    ("dpm2_a", "sample"),
    ("dpmpp_sde", "sample"),
    ("euler_a", "sample"),
    ("plms", "sample"),
    ("plms", "v_prediction"),
}


def toy(x: np.ndarray, t: float) -> np.ndarray:
    """A fixed nonlinear stand-in for a U-Net."""
    out: np.ndarray = np.tanh(0.7 * x + 0.3 * np.cos(t / 100.0)) + 0.1 * np.sin(3 * x)
    return out


def skipped(sampler: str, spacing: str) -> str:
    """Why diffusers is no oracle for a pair; empty where it is."""
    if spacing in SIGMAS and sampler in ("ddim", "ddpm", "euler_a", "plms", "lcm", "tcd"):
        return "diffusers' class has no such spacing"
    if sampler in ("lcm", "tcd") and spacing != "lcm":
        return "diffusers' class has its own spacing alone"
    if sampler not in ("lcm", "tcd") and spacing == "lcm":
        return "the spacing of LCM and TCD"
    if sampler in ("ddim", "plms") and spacing == "linspace":
        return "diffusers steps to t - 1000/N even where linspace puts the next timestep elsewhere"
    return ""


class _Wide:
    """A module with float64 in float32's place."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


@contextmanager
def widened(name: str, wide: bool) -> Iterator[Any]:
    """The module of a scheduler class, computing in float64 when ``wide``."""
    import diffusers

    module: Any = importlib.import_module(getattr(diffusers, name).__module__)
    before = {key: getattr(module, key) for key in ("np", "torch") if hasattr(module, key)}
    try:
        if wide:
            for key, value in before.items():
                setattr(module, key, _Wide(value))
        yield module
    finally:
        for key, value in before.items():
            setattr(module, key, value)


class BrownianPath:
    """Noise along one Brownian path in sigma, from independent draws: what BrownianTreeNoiseSampler gives."""

    def __init__(self, draw: Callable[[], Any]) -> None:
        self.draw = draw
        self.start, self.end, self.noise = math.nan, math.nan, None

    def __call__(self, start: Any, end: Any) -> Any:
        start, end = float(start), float(end)
        if start == self.start:
            shared = (start - self.end) / (start - end)
            noise = math.sqrt(shared) * self.noise + math.sqrt(1 - shared) * self.draw()
        else:
            noise = self.draw()
        self.start, self.end, self.noise = start, end, noise
        return noise


def to_epsilon(prediction: str, level: Level, x: Any, m: Any) -> Any:
    """The noise estimate that a model output of another type amounts to."""
    p, q = x0_from(prediction, level)
    return (x - level.alpha * (p * x + q * m)) / level.sigma


def reference(sampler: str, spacing: str, schedule: edgediff.Schedule, plan: Plan, wide: bool) -> np.ndarray:
    """The final state by diffusers' scheduler, with its noise from torch seed 1."""
    name, extra = FLOW[sampler] if schedule.flow else SCHEDULERS[sampler]
    native = schedule.flow or (sampler, schedule.prediction_type) not in EPSILON_ONLY
    config: dict[str, Any] = {"num_train_timesteps": schedule.num_train_timesteps}
    if not schedule.flow:
        keys = ("beta_schedule", "beta_start", "beta_end", "steps_offset")
        config |= {key: getattr(schedule, key) for key in keys}
        config["prediction_type"] = schedule.prediction_type if native else "epsilon"
    if spacing in SIGMAS:
        config[SIGMAS[spacing]] = True
    if not name.startswith("FlowMatch"):
        config["timestep_spacing"] = spacing if spacing in TIMESTEPS else "linspace"
        extra = extra | ({"flow_shift": schedule.shift} if schedule.flow else {})
    else:
        config["shift"] = schedule.shift
    dtype = torch.float64 if wide else torch.float32
    with widened(name, wide) as module:
        scheduler = getattr(module, name)(**config, **extra)
        if not schedule.flow:
            bar = schedule.alpha_bar
            if name != "DDIMScheduler":
                # diffusers' other classes put 2**-24 in place of zero; the smaller, the nearer to the limit. Those that
                # work with x / alpha lose digits where it is too small.
                bar = np.maximum(bar, 1e-12 if name.startswith("Euler") else 1e-200)
            scheduler.alphas_cumprod = torch.from_numpy(bar).to(dtype)
            scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
        scheduler.set_timesteps(plan.intervals)
        ts = np.array([row.t for row in plan.rows])
        assert len(scheduler.timesteps) == len(ts), (sampler, len(scheduler.timesteps), len(ts))
        # diffusers cuts fractional timesteps of some multistep classes down, where ours are rounded; DPM2 rounds.
        assert np.abs(scheduler.timesteps.numpy() - ts).max() <= (1.01 if spacing in SIGMAS or schedule.flow else 1e-3)
        if spacing in SIGMAS:
            scheduler.timesteps = torch.from_numpy(ts)
        generator = torch.Generator().manual_seed(1)
        if sampler == "dpmpp_sde":
            scheduler.noise_sampler = BrownianPath(lambda: torch.randn(SHAPE, generator=generator, dtype=dtype))
        takes = {"generator": generator} if "generator" in scheduler.step.__code__.co_varnames else {}
        takes |= PAPER.get(sampler, {})
        x = torch.from_numpy(TorchCpuGenerator(0).randn(SHAPE)).to(dtype) * getattr(scheduler, "init_noise_sigma", 1.0)
        for k, t in enumerate(scheduler.timesteps):
            seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            out = torch.from_numpy(toy(seen.numpy(), plan.rows[k].t)).to(dtype)
            if not native:
                out = to_epsilon(schedule.prediction_type, plan.levels[k], seen, out)
            if sampler.startswith("deis") and spacing in SIGMAS and k + 1 == len(ts):
                break  # diffusers' last step stays where it is; ours goes to the clean level
            x = scheduler.step(out, t, x, **takes)[0]
    result: np.ndarray = x.numpy()
    return result


def _flow_sigmas(sampler: str, steps: int, shift: float, wide: bool) -> list[float]:
    """diffusers' own, which stop short of pure noise to keep logarithms finite, each class in another way."""
    name, extra = FLOW[sampler]
    with widened(name, wide) as module:
        scheduler = getattr(module, name)(flow_shift=shift, **extra)
        scheduler.set_timesteps(steps)
    return [float(s) for s in scheduler.sigmas[:-1]]


def scheduler_error(
    sampler: str,
    spacing: str,
    prediction: str = "epsilon",
    betas: str = "scaled_linear",
    steps: int = 20,
    wide: bool = True,
    their_wide: bool = True,
    shift: float = 1.0,
    zero: bool = False,
) -> float:
    """Largest difference of the final states, relative to the largest value of diffusers' final state.

    Ours runs in float64 when ``wide``, else in float32; diffusers likewise by ``their_wide``. ``zero`` rescales the
    schedule to zero terminal SNR.
    """
    schedule = edgediff.Schedule(
        beta_schedule=betas,
        prediction_type=prediction,
        timestep_spacing="leading",
        steps_offset=1 if spacing == "leading" else 0,
        set_alpha_to_one=False,
        shift=shift,
        rescale_betas_zero_snr=zero,
    )
    plan = edgediff.plan(schedule, sampler, steps, 1.0, spacing, **PAPER.get(sampler, {}))
    if schedule.flow and sampler not in ("euler", "heun"):
        plan = edgediff.plan(schedule, sampler, None, 1.0, sigmas=_flow_sigmas(sampler, steps, shift, their_wide))
    expected = reference(sampler, spacing, schedule, plan, their_wide)
    dtype = torch.float64 if their_wide else torch.float32
    draws = torch.Generator().manual_seed(1)
    start = TorchCpuGenerator(0).randn(SHAPE).astype(np.float64 if wide else np.float32)
    states = run(
        plan,
        lambda x, t, _: (None, toy(x, t)),
        start * plan.start,
        lambda: torch.randn(SHAPE, generator=draws, dtype=dtype).numpy().astype(start.dtype),
    )
    ends = [step.after for step in states]
    got = ends[-2 if sampler.startswith("deis") and spacing in SIGMAS else -1]
    assert got.dtype == start.dtype
    return float(np.abs(got - expected).max() / np.abs(expected).max())
