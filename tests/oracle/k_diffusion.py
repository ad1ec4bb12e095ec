"""Golden values of k-diffusion's samplers, which are the origin of several of ours.

    pip install --no-deps k-diffusion==0.1.1.post1 && pip install torchsde && python -m tests.oracle.k_diffusion

writes k_diffusion.json beside this file. k-diffusion's own requirements are gigabytes; its samplers need torch and
torchsde alone, so what else it imports is stood in for.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from types import ModuleType
from typing import Any

import torch

from edgediff import Schedule
from edgediff.sampling.samplers import SAMPLERS

from .cases import GOLDEN, STEPS, golden_draws, golden_start
from .schedulers import BrownianPath, toy

FUNCTIONS = {
    "euler": "sample_euler",
    "euler_a": "sample_euler_ancestral",
    "heun": "sample_heun",
    "dpm2": "sample_dpm_2",
    "dpm2_a": "sample_dpm_2_ancestral",
    "lms": "sample_lms",
    "dpmpp_2s_a": "sample_dpmpp_2s_ancestral",
    "dpmpp_sde": "sample_dpmpp_sde",
    "dpmpp_2m": "sample_dpmpp_2m",
    "dpmpp_2m_sde": "sample_dpmpp_2m_sde",
    "dpmpp_3m_sde": "sample_dpmpp_3m_sde",
}
SPACINGS = ("karras", "exponential", "normal")


def load() -> tuple[Any, Any]:
    """The modules k_diffusion.sampling and k_diffusion.external."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        raise SystemExit(__doc__)
    package = ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations or [])
    stand_ins = {name: ModuleType(name) for name in ("torchvision", "torchvision.transforms", "torchdiffeq")}
    stand_ins["torchvision.transforms"].functional = None  # type: ignore[attr-defined]
    stand_ins["torchdiffeq"].odeint = None  # type: ignore[attr-defined]
    sys.modules.update(stand_ins | {"k_diffusion": package})
    return importlib.import_module("k_diffusion.sampling"), importlib.import_module("k_diffusion.external")


def main() -> None:
    torch.set_default_dtype(torch.float64)
    sampling, external = load()
    bar = torch.from_numpy(Schedule().alpha_bar)
    discrete = external.DiscreteSchedule(((1 - bar) / bar) ** 0.5, quantize=False)
    low, high = float(discrete.sigma_min), float(discrete.sigma_max)
    grids = {
        "karras": sampling.get_sigmas_karras(STEPS, low, high),
        "exponential": sampling.get_sigmas_exponential(STEPS, low, high),
        "normal": discrete.get_sigmas(STEPS),
    }

    def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """x0 of a toy epsilon model, which sees variance-preserving coordinates."""
        t = float(discrete.sigma_to_t(sigma)[0])
        t = round(t) if SAMPLERS[sampler].rounded and spacing != "normal" else t
        return x - sigma[0] * torch.from_numpy(toy((x / (sigma[0] ** 2 + 1) ** 0.5).numpy(), t))

    values = {}
    for sampler, name in FUNCTIONS.items():
        function = getattr(sampling, name)
        options: dict[str, Any] = {"disable": True}
        for spacing, grid in grids.items():
            draw = golden_draws()
            if "noise_sampler" in function.__wrapped__.__code__.co_varnames:
                path = BrownianPath(draw)
                options["noise_sampler"] = path if sampler == "dpmpp_sde" else lambda *_, draw=draw: draw()
            x = torch.from_numpy(golden_start()) * grid[0].double()
            end = function(denoise, x, grid.double(), **options)
            values[f"{sampler} {spacing}"] = [float(v) for v in end.flatten()]
    GOLDEN.write_text(json.dumps({"k_diffusion": "0.1.1.post1", "values": values}, indent=0) + "\n", encoding="utf-8")
    print(GOLDEN, len(values))


if __name__ == "__main__":
    main()
