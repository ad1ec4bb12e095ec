"""Every argument of a call, declared once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..arrays import Float32
from ..sampling.guidance import Apg, Hook
from ..sampling.rng import Generator

OUTPUT_TYPES = ("pil", "np", "latent")


@dataclass(frozen=True)
class Arguments:
    """What ``Pipeline.stream`` takes, by the same names; its docstring says what each means."""

    prompt: str | Sequence[str] = ""
    negative_prompt: str | Sequence[str] | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | Sequence[float] | None = None
    height: int | None = None
    width: int | None = None
    num_images_per_prompt: int = 1
    seed: int | Sequence[int] | None = None
    sampler: str | None = None
    spacing: str | None = None
    timesteps: Sequence[float] | None = None
    sigmas: Sequence[float] | None = None
    eta: float | None = None
    guidance: str | Apg = "cfg"
    guidance_interval: tuple[float, float] | None = None
    guidance_rescale: float = 0.0
    dynamic_thresholding_ratio: float | None = None
    on_x0: Hook | None = None
    rng: str | Callable[[int], Generator] = "torch-cpu"
    clip_skip: int = 0
    original_size: tuple[int, int] | None = None
    crops_coords_top_left: tuple[int, int] | None = None
    target_size: tuple[int, int] | None = None
    aesthetic_score: float | None = None
    negative_aesthetic_score: float | None = None
    image: Any = None
    mask_image: Any = None
    prompt_syntax: str = "a1111"
    latents: Float32 | None = None
    output_type: str = "pil"
