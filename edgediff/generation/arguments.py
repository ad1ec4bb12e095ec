"""Every argument of a call, declared once: its name, type, default, meaning, and what a picture's text says of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32
from ..checks import is_number
from ..prompts.weights import PromptSyntax
from ..sampling.guidance import Apg, Hook, Method
from ..sampling.names import SamplerName
from ..sampling.rng import Generator, GeneratorName
from ..sampling.schedule import SpacingName

if TYPE_CHECKING:
    from PIL.Image import Image

OutputType = Literal["pil", "np", "latent"]
OUTPUT_TYPES: tuple[str, ...] = get_args(OutputType)
MAX_IMAGES = 1000  # of one call


def shown(name: str, text: Callable[[Any], str] = str) -> dict[str, Any]:
    """Metadata of an argument that a picture's text names when it is not the default; ``text`` writes the value."""
    return {"shown": (name, text)}


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{v:g}" for v in values)


def _size(size: tuple[int, int]) -> str:
    return "{}x{}".format(*size[::-1])


@dataclass(frozen=True)
class Arguments:
    """These are the arguments that ``Pipeline.__call__`` and ``Pipeline.stream`` take.

    Args:
        prompt: one, or several for a batch. ``(word:1.2)`` weighs a word, ``(word)`` and ``[word]`` by 1.1 and
            1/1.1; a backslash before a bracket makes it text; BREAK begins a new chunk. Prompts longer than the
            text encoder are read in chunks. "" draws without a prompt. Models without a text encoder take none.
        negative_prompt: what to steer away from; one for all or one a prompt. None and "" differ for models that
            were trained with zeros for no prompt (SDXL).
        num_inference_steps, guidance_scale, height, width, sampler: the bundle's defaults when None.
            ``guidance_scale`` may be a list, one a step.
        num_images_per_prompt: pictures of each prompt; a call makes at most 1000 in all.
        seed: of the first image; image k has seed + k. A sequence gives each image its own. Random when None.
            Image k of a batch equals the single image with its seed.
        sampler: our name, diffusers' class or A1111's label ("DPM++ 2M Karras"), see ``edgediff.plan``.
        spacing, timesteps, sigmas, eta, guidance_interval: see ``edgediff.plan``.
        guidance: cfg, cfg++ (``guidance_scale`` is then 0 .. 1), apg, or an ``Apg`` with its settings.
        guidance_rescale: share, 0 .. 1, by which the guided output's deviation is brought back (Lin et al. 2023).
        dynamic_thresholding_ratio: quantile, 0 .. 1, at which each channel of the guided x0 is clipped and scaled
            back to the range of the estimate without guidance (after Saharia et al. 2022); None for none.
        clip_skip: how many of the text encoder's last layers to leave out for the prompt, counted as in diffusers
            (A1111 counts one more).
        negative_clip_skip: how many to leave out for the negative prompt: none, as in diffusers, unless it is given.
            A1111 leaves out as many as for the prompt.
        original_size, crops_coords_top_left, target_size: SDXL's (height, width) and (top, left) in pixels; the
            picture's size and (0, 0) when None.
        aesthetic_score, negative_aesthetic_score: of SDXL's refiner; 6.0 and 2.5 when None.
        rng: torch-cpu or torch-cuda, whose noise the seeds give; or a function from a seed to a generator (see
            ``edgediff.sampling.rng``).
        prompt_syntax: a1111, or plain, where every character is text.
        on_x0: called once a U-Net call with the x0 estimates, latents (B, C, h, w) float32; what it returns is
            used in their place.
        image, mask_image: for inpainting models: a Pillow image, an array (uint8 or bool), or the path of a PNG, JPEG
            or WebP file each; white in the mask is drawn anew. Pictures are turned as EXIF says, 16 bits become 8,
            and what is transparent in ``image`` lies on white. A mask must not be transparent.
        latents: starting noise (B, C, h, w) float32 of deviation 1, instead of the seed's.
        output_type: pil, np (uint8 (B, H, W, 3)) or latent.
        deadline: seconds from the call's first work to its pictures; None for any time. Looked at between steps and
            before the pictures are decoded. Of a stream it begins when its first step is asked for, and what is done
            between steps counts.
    """

    prompt: str | Sequence[str] | None = None
    _: KW_ONLY
    negative_prompt: str | Sequence[str] | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | Sequence[float] | None = None
    height: int | None = None
    width: int | None = None
    num_images_per_prompt: int = 1
    seed: int | Sequence[int] | None = None
    sampler: SamplerName | str | None = None
    spacing: SpacingName | str | None = None
    eta: float | None = field(default=None, metadata=shown("Eta"))
    guidance: Method | Apg = field(default="cfg", metadata=shown("Guidance", lambda v: str(v).replace(", ", " ")))
    guidance_interval: tuple[float, float] | None = field(
        default=None, metadata=shown("Guidance interval", lambda v: "{:g} to {:g}".format(*v))
    )
    guidance_rescale: float = field(default=0.0, metadata=shown("Guidance rescale"))
    dynamic_thresholding_ratio: float | None = field(default=None, metadata=shown("Dynamic thresholding"))
    clip_skip: int = field(default=0, metadata=shown("Clip skip", lambda v: str(v + 1)))  # A1111's count
    negative_clip_skip: int = field(default=0, metadata=shown("Negative clip skip", lambda v: str(v + 1)))
    original_size: tuple[int, int] | None = field(default=None, metadata=shown("Original size", _size))
    crops_coords_top_left: tuple[int, int] | None = field(
        default=None, metadata=shown("Crop", lambda v: "{} {}".format(*v))
    )
    target_size: tuple[int, int] | None = field(default=None, metadata=shown("Target size", _size))
    aesthetic_score: float | None = field(default=None, metadata=shown("Aesthetic score"))
    negative_aesthetic_score: float | None = field(default=None, metadata=shown("Negative aesthetic score"))
    rng: GeneratorName | Callable[[int], Generator] = field(
        default="torch-cpu", metadata=shown("RNG", lambda v: v if isinstance(v, str) else "custom")
    )
    timesteps: Sequence[float] | None = field(default=None, metadata=shown("Timesteps", _numbers))
    sigmas: Sequence[float] | None = field(default=None, metadata=shown("Sigmas", _numbers))
    prompt_syntax: PromptSyntax = field(default="a1111", metadata=shown("Prompt syntax"))
    on_x0: Hook | None = field(default=None, metadata=shown("Hook", lambda v: "on_x0"))
    image: Image | NDArray[np.uint8 | np.bool_] | str | Path | None = None
    mask_image: Image | NDArray[np.uint8 | np.bool_] | str | Path | None = None
    latents: Float32 | None = None
    output_type: OutputType = "pil"
    deadline: float | None = None

    def facts(self) -> dict[str, str]:
        """What a picture's text says of the arguments that are not at their defaults."""
        out = {}
        for f in fields(self):
            value = getattr(self, f.name)
            default = value is None or ((isinstance(value, str) or is_number(value)) and value == f.default)
            if "shown" in f.metadata and not default:
                name, text = f.metadata["shown"]
                out[name] = text(value)
        return out


NAMES = tuple(f.name for f in fields(Arguments))
