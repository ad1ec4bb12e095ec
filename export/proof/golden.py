"""Golden tensors are what torch gives for fixed inputs and prompts; a bundle stores them, for a proof without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgediff.bundle.golden import cases_of
from edgediff.bundle.manifest import Bundle
from edgediff.generation.arguments import Arguments
from edgediff.generation.request import plan_for
from edgediff.pipeline import Pipeline
from edgediff.sampling.rng import TorchCpuGenerator

from ..precision.precisions import Case

GOLDEN_FILE = "golden.safetensors"
PROMPTS = ("a photograph of an astronaut riding a horse", "a red apple on a blue background")
NEGATIVE = "a green pear"  # of the second picture; the first has none, which some models read as zeros
MAX_STEPS, FEW_STEPS = 8, 4  # few of a model of this many bytes in fp32
LARGE = 8 << 30
CELL = 8  # pixels; diffusers' pipelines of latents take multiples of it alone
MAX_CELLS = 16  # latent cells a side; pixels where there is no autoencoder: 4 times as many


def picture_arguments(bundle: Bundle, size: int) -> list[dict[str, Any]]:
    """List the calls whose pictures are compared: a small size, the model's own sampler and guidance."""
    latent, defaults = bundle.latent, bundle.defaults
    most = MAX_CELLS * latent.factor * (4 if latent.factor == 1 else 1)
    multiple = math.lcm(latent.size_multiple, 1 if latent.factor == 1 else CELL)
    side = max(multiple, min(defaults.width, most) // multiple * multiple)
    most_steps = MAX_STEPS if size < LARGE else FEW_STEPS
    common = {"width": side, "height": side, "num_inference_steps": min(defaults.num_inference_steps, most_steps)}
    calls: list[dict[str, Any]] = [{"prompt": "", "seed": seed, **common} for seed in range(len(PROMPTS))]
    if bundle.text:
        calls = [{**call, "prompt": prompt} for call, prompt in zip(calls, PROMPTS, strict=True)]
        if defaults.guidance_scale > 1 and not bundle.embeds_guidance:
            calls[1]["negative_prompt"] = NEGATIVE
    return calls


def picture_arrays(bundle: Bundle, call: Mapping[str, Any], from_picture: bool) -> dict[str, NDArray[Any]]:
    """Make what a call takes besides.

    For inpainting models that is a picture of colour ramps, and a mask of its middle. Where diffusers' pipeline starts
    ``from_picture``, a grey one is covered with the noise of the first level; so the start is that noise alone.
    """
    side = call["width"]
    if bundle.inpaints:
        ramp = np.linspace(0, 255, side).astype(np.uint8)
        image = np.stack(np.broadcast_arrays(ramp[None, :], ramp[:, None], ramp[::-1, None]), axis=-1)
        mask = np.zeros((side, side), np.uint8)
        mask[side // 4 : -side // 4, side // 4 : -side // 4] = 255
        return {"image": image, "mask_image": mask}
    if from_picture:
        cells = side // bundle.latent.factor
        noise = TorchCpuGenerator(call["seed"]).randn((1, bundle.latent.channels, cells, cells))
        first = plan_for(bundle, Arguments(**call))
        return {"latents": noise * np.float32(first.levels[0].sigma / first.start)}
    return {}


def draw_pictures(
    pipe: Pipeline, calls: Sequence[Mapping[str, Any]], arrays: Sequence[Mapping[str, NDArray[Any]]]
) -> list[NDArray[np.uint8]]:
    """Draw the picture (H, W, 3) of each call with its arrays."""
    pictures = []
    for call, extra in zip(calls, arrays, strict=True):
        arguments: dict[str, Any] = {**call, **extra, "output_type": "np"}
        pictures.append(np.asarray(pipe(**arguments).images[0]))
    return pictures


def store_tensors(path: Path, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write a safetensors file, and make the folder it lies in."""
    from safetensors.numpy import save

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(save({name: np.ascontiguousarray(v) for name, v in tensors.items()}))


def flatten_cases(part: str, cases: Sequence[Case], first: int = 0) -> dict[str, NDArray[Any]]:
    """Name the arrays of cases ``PART.K.in.NAME`` and ``PART.K.out.NAME``, K from ``first``."""
    return {
        f"{part}.{k}.{side}.{name}": array
        for k, pair in enumerate(cases, first)
        for side, arrays in zip(("in", "out"), pair, strict=True)
        for name, array in arrays.items()
    }


def load_cases(paths: Sequence[Path], part: str) -> list[Case]:
    """Load a part's cases from files that ``store_tensors`` made of ``flatten_cases``."""
    from safetensors.numpy import load_file

    tensors = {name: array for path in paths for name, array in load_file(path).items()}
    return [(case["in"], case["out"]) for case in cases_of(part, tensors).values()]
