"""Names: every class of diffusers that has a twin, A1111's and ComfyUI's lists, and configs."""

from __future__ import annotations

from types import ModuleType

import pytest

from edgediff import ArgumentError, Schedule, plan
from edgediff.sampling.names import DIFFUSERS, from_config, resolve
from edgediff.sampling.samplers import SAMPLERS

# As A1111 1.10 lists them (DPM fast, DPM adaptive and Restart are other kinds of method).
A1111 = {
    "DPM++ 2M": "dpmpp_2m",
    "DPM++ SDE": "dpmpp_sde",
    "DPM++ 2M SDE": "dpmpp_2m_sde",
    "DPM++ 3M SDE": "dpmpp_3m_sde",
    "Euler a": "euler_a",
    "Euler": "euler",
    "LMS": "lms",
    "Heun": "heun",
    "DPM2": "dpm2",
    "DPM2 a": "dpm2_a",
    "DPM++ 2S a": "dpmpp_2s_a",
    "DDIM": "ddim",
    "PLMS": "plms",
    "UniPC": "unipc",
    "LCM": "lcm",
}
A1111_WITH_SCHEDULE = {
    "DPM++ 2M Karras": ("dpmpp_2m", "karras"),
    "DPM++ SDE Karras": ("dpmpp_sde", "karras"),
    "DPM++ 2M SDE Exponential": ("dpmpp_2m_sde", "exponential"),
    "DPM++ 2M SDE Karras": ("dpmpp_2m_sde", "karras"),
    "DPM++ 3M SDE Exponential": ("dpmpp_3m_sde", "exponential"),
    "DPM++ 2S a Karras": ("dpmpp_2s_a", "karras"),
    "LMS Karras": ("lms", "karras"),
    "DPM2 a Karras": ("dpm2_a", "karras"),
    "Euler Automatic": ("euler", None),
    "Euler SGM Uniform": ("euler", "sgm_uniform"),
    "DPM++ 2M Align Your Steps": ("dpmpp_2m", "ays"),
}
COMFYUI = {
    "euler_ancestral": "euler_a",
    "heun": "heun",
    "dpm_2": "dpm2",
    "dpm_2_ancestral": "dpm2_a",
    "lms": "lms",
    "dpmpp_2s_ancestral": "dpmpp_2s_a",
    "dpmpp_sde": "dpmpp_sde",
    "dpmpp_2m": "dpmpp_2m",
    "dpmpp_2m_sde": "dpmpp_2m_sde",
    "dpmpp_3m_sde": "dpmpp_3m_sde",
    "ddpm": "ddpm",
    "lcm": "lcm",
    "deis": "deis",
    "uni_pc_bh2": "unipc_3",
}


@pytest.mark.parametrize(("name", "key"), [*A1111.items(), *COMFYUI.items(), *DIFFUSERS.items()])
def test_known_names(name: str, key: str) -> None:
    assert resolve(name) == (key, None)
    assert resolve(f"  {name.upper()} ") == (key, None)


@pytest.mark.parametrize(("name", "expected"), A1111_WITH_SCHEDULE.items())
def test_labels_with_a_schedule(name: str, expected: tuple[str, str | None]) -> None:
    assert resolve(name) == expected


@pytest.mark.parametrize("key", SAMPLERS)
def test_own_names_and_labels(key: str) -> None:
    assert resolve(key) == (key, None)
    assert resolve(SAMPLERS[key].label) == (key, None)
    assert resolve(f"{SAMPLERS[key].label} Karras") == (key, "karras")


def test_classes_exist(diffusers: ModuleType) -> None:
    for name in DIFFUSERS:
        assert hasattr(diffusers, name), name


def test_a_plan_by_label() -> None:
    table = plan(Schedule(), "DPM++ 2M Karras", 5)
    assert (table.sampler, table.spacing, table.label) == ("dpmpp_2m", "karras", "DPM++ 2M")
    assert plan(Schedule(), "DPM++ 2M Karras", 5, spacing="trailing").spacing == "trailing"
    assert plan(Schedule(), "LCMScheduler", 4).spacing == "lcm"


@pytest.mark.parametrize(
    ("name", "spacing"),
    [("Karras", "karras"), ("SGM Uniform", "sgm_uniform"), ("Align Your Steps", "ays"), ("AYS SDXL", "ays_sdxl")],
)
def test_spacings_by_label(name: str, spacing: str) -> None:
    assert plan(Schedule(), "euler", 5, spacing=name).spacing == spacing


def test_messages_say_which_half_is_wrong() -> None:
    with pytest.raises(
        ArgumentError, match=r"sampler 'DPM[+][+] 2M Beta' ends in no spacing: 'beta'; choose from leading"
    ):
        resolve("DPM++ 2M Beta")
    with pytest.raises(ArgumentError, match=r"no spacing \[999, 500\]; .*given as timesteps or sigmas"):
        plan(Schedule(), "ddim", spacing=[999, 500])  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="spacing was given with timesteps or sigmas"):
        plan(Schedule(), "ddim", sigmas=[5.0, 1.0], spacing="karras")
    with pytest.raises(ArgumentError, match="schedule is 'ddim'; it must be a Schedule"):
        plan("ddim")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "Karras", "DPM fast", "eulerb", None, 3, "dpm++"])
def test_unknown_names(name: object) -> None:
    with pytest.raises(ArgumentError, match=r"no sampler .*; choose from ddim, ddpm"):
        resolve(name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("DPMSolverMultistepScheduler", {}, ("dpmpp_2m", None)),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, ("dpmpp_2m", "karras")),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, ("dpmpp_2m_sde", None)),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, None),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, None),
        ("DPMSolverMultistepScheduler", {"solver_order": 3, "algorithm_type": "sde-dpmsolver++"}, None),
        ("DPMSolverMultistepScheduler", {"solver_type": "heun"}, None),
        ("UniPCMultistepScheduler", {"solver_order": 3}, ("unipc_3", None)),
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}, None),
        ("UniPCMultistepScheduler", {"disable_corrector": [0]}, None),
        ("DEISMultistepScheduler", {"use_exponential_sigmas": True}, ("deis", "exponential")),
        ("PNDMScheduler", {"skip_prk_steps": True}, ("plms", None)),
        ("PNDMScheduler", {}, None),
        ("DDPMScheduler", {}, ("ddpm", None)),
        ("DDPMScheduler", {"variance_type": "fixed_large"}, None),
        ("LCMScheduler", {}, ("lcm", None)),
        ("LCMScheduler", {"original_inference_steps": 100, "timestep_scaling": 5.0}, ("lcm", None)),
        ("TCDScheduler", {"clip_sample": True}, None),
        ("DDIMParallelScheduler", {}, ("ddim", None)),
        ("DDPMParallelScheduler", {}, ("ddpm", None)),
        ("DPMSolverMultistepScheduler", {"variance_type": "learned_range"}, None),
        ("EulerAncestralDiscreteScheduler", {}, ("euler_a", None)),
        ("IPNDMScheduler", {}, None),
    ],
)
def test_scheduler_configs(diffusers: ModuleType, name: str, settings: dict, expected: tuple | None) -> None:
    """From the config that a real scheduler saves, every default written out."""
    scheduler = getattr(diffusers, name)(**settings)
    assert from_config({**scheduler.config, "_class_name": name}) == expected
