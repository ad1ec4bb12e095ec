"""A call's arguments, checked before any work starts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Float32
from ..bundle.manifest import MAX_SIZE, Bundle
from ..errors import ArgumentError, BundleError, PromptError, PromptWarning, choices
from ..prompts.chunks import PromptChunks, tokenise
from ..prompts.textual_inversion import Embeddings
from ..prompts.tokenizer import Tokenizer
from ..sampling.guidance import METHODS, Apg, Combine, Hook, combiner
from ..sampling.planning import Plan
from ..sampling.rng import Generator, find_generator
from .arguments import OUTPUT_TYPES, Arguments
from .conditioning import Sizes, check_sizes
from .masks import Masked, check_masked

MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class Request:
    """One checked call: every argument has a value and is known to be usable."""

    arguments: Arguments
    prompts: tuple[str, ...]  # one an image
    negatives: tuple[str, ...]
    texts: Mapping[
        str, tuple[PromptChunks, ...]
    ]  # of every prompt above that the text encoders will read, one for each
    sizes: Sizes
    masked: Masked | None
    embeddings: Embeddings
    seeds: tuple[int, ...]
    generator: Callable[[int], Generator]
    plan: Plan
    width: int
    height: int
    latents: Float32 | None
    clip: float | None = None  # of x0 estimates, as the model wants it
    guidance_embedding: float | None = None  # the guidance scale, where the U-Net takes it as an input

    def combiner(self) -> Combine | None:
        """Fresh unfused guidance for one run, where the call asks for any."""
        return _combiner(self.plan, self.arguments, self.clip)


def check(
    bundle: Bundle, tokenizers: Sequence[Tokenizer], embeddings: Embeddings, given: Arguments, level: int
) -> Request:
    """The checked form of a call's arguments; warnings are for the caller ``level`` frames above.

    Raises:
        ArgumentError, PromptError: see ``Pipeline.stream``.
    """
    prompts = _texts("prompt", given.prompt)
    if not prompts:
        raise PromptError("no prompt was given")
    negative_prompt = "" if given.negative_prompt is None else given.negative_prompt
    negatives = _texts("negative prompt", negative_prompt)
    if isinstance(negative_prompt, str):
        negatives *= len(prompts)
    if len(negatives) != len(prompts):
        raise PromptError(f"{len(prompts)} prompts need as many negative prompts; {len(negatives)} were given")
    per = whole("num_images_per_prompt", given.num_images_per_prompt)
    width, height = _size(bundle, given)
    if given.output_type not in OUTPUT_TYPES:
        raise ArgumentError(f"no output_type {given.output_type!r}; choose from {choices(OUTPUT_TYPES)}")
    _check_clip_skip(bundle, given.clip_skip)
    prompts = tuple(p for p in prompts for _ in range(per))
    negatives = tuple(n for n in negatives for _ in range(per))
    table = _plan(bundle, given)
    latent = bundle.latent
    shape = (len(prompts), latent.channels, height // latent.factor, width // latent.factor)
    latents = None if given.latents is None else _latents(given.latents, shape)
    seeds = _seeds(given.seed, len(prompts))
    generator = find_generator(given.rng)
    sizes = check_sizes(bundle, given, width, height)
    masked = check_masked(bundle, given.image, given.mask_image, width, height)
    if not tokenizers and any((*prompts, *negatives)):
        raise PromptError(
            f"bundle {bundle.name!r} takes no prompt; it was given {next(filter(None, prompts + negatives))!r}"
        )
    texts: dict[str, tuple[PromptChunks, ...]] = {}
    for kind, some in (("prompt", prompts), ("negative prompt", negatives if table.guided else ())):
        unique = list(dict.fromkeys(some)) if tokenizers else []
        for k, prompt in enumerate(unique, 1):
            what = kind if len(unique) == 1 else f"{kind} {k}"
            texts[prompt] = both = tuple(
                tokenise(prompt, t, embeddings, given.prompt_syntax, bundle.max_chunks, what) for t in tokenizers
            )
            text = both[0]
            if any(len(other.chunks) != len(text.chunks) for other in both):
                raise BundleError(
                    f"bundle {bundle.name!r}: its tokenizers cut the {what} into different numbers of chunks"
                )
            if text.empty and kind == "prompt":
                raise PromptError(f"the {what} is {prompt!r}; it must hold a word")
            if text.cut:
                warnings.warn(
                    f"the {what} is longer than the {len(text.chunks) * (tokenizers[0].max_length - 2)} tokens that "
                    f"this model reads; cut: {_shown(text.cut)}",
                    PromptWarning,
                    stacklevel=level + 1,
                )
    return Request(
        given,
        prompts,
        negatives,
        texts,
        sizes,
        masked,
        embeddings,
        seeds,
        generator,
        table,
        width,
        height,
        latents,
        bundle.clip_sample,
        _guidance_embedding(bundle, given),
    )


def _plan(bundle: Bundle, given: Arguments) -> Plan:
    if not isinstance(given.guidance, Apg) and given.guidance not in METHODS:
        raise ArgumentError(f"no guidance {given.guidance!r}; choose from {choices(METHODS)}, or an Apg(...)")
    linear = "cfg++" if given.guidance == "cfg++" else "cfg"
    table = bundle.plan(
        given.sampler,
        given.num_inference_steps,
        given.guidance_scale,
        given.spacing,
        eta=given.eta,
        guidance=linear,
        guidance_interval=given.guidance_interval,
        timesteps=given.timesteps,
        sigmas=given.sigmas,
    )
    for name, value in (
        ("guidance_rescale", given.guidance_rescale),
        ("dynamic_thresholding_ratio", given.dynamic_thresholding_ratio),
    ):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and 0 <= value <= 1):
            raise ArgumentError(f"{name} is {value!r}; it must be a number, 0 .. 1")
    if given.on_x0 is not None and not callable(given.on_x0):
        raise ArgumentError(f"on_x0 is {given.on_x0!r}; it must be a function of an array")
    _combiner(table, given, bundle.clip_sample)  # refuses what does not go together
    return table


def _combiner(table: Plan, given: Arguments, clip: float | None) -> Combine | None:
    hook = given.on_x0
    if clip is not None:
        hook = _clipped(clip, given.on_x0)
    return combiner(table, given.guidance, given.guidance_rescale, given.dynamic_thresholding_ratio, hook)


def _clipped(limit: float, then: Hook | None) -> Hook:
    def clip(x0: Float32) -> Float32:
        clipped = np.clip(x0, -limit, limit)
        return clipped if then is None else then(clipped)

    return clip


def _guidance_embedding(bundle: Bundle, given: Arguments) -> float | None:
    """The scale that the U-Net reads; None where guidance is the table's."""
    if not bundle.embeds_guidance:
        return None
    scale = bundle.defaults.guidance_scale if given.guidance_scale is None else given.guidance_scale
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 1 <= scale <= 100:
        raise ArgumentError(f"guidance_scale is {scale!r}; this U-Net takes one number as an input, 1 .. 100")
    return float(scale)


def _size(bundle: Bundle, given: Arguments) -> tuple[int, int]:
    defaults, multiple = bundle.defaults, bundle.latent.size_multiple
    height = whole("height", defaults.height if given.height is None else given.height)
    width = whole("width", defaults.width if given.width is None else given.width)
    for name, value in (("height", height), ("width", width)):
        if value > MAX_SIZE:
            raise ArgumentError(f"{name} is {value}; it must be at most {MAX_SIZE}")
        if value % multiple:
            below = value // multiple * multiple
            near = [str(v) for v in (below, below + multiple) if v]
            raise ArgumentError(f"{name} is {value}; it must be a multiple of {multiple}: try {' or '.join(near)}")
    return width, height


def _check_clip_skip(bundle: Bundle, clip_skip: int) -> None:
    known = (0, *bundle.clip_skips)
    if isinstance(clip_skip, bool) or not isinstance(clip_skip, (int, np.integer)) or clip_skip not in known:
        raise ArgumentError(
            f"clip_skip is {clip_skip!r}; the text encoder of bundle {bundle.name!r} offers {choices(map(str, known))}"
        )


def _latents(given: Any, shape: tuple[int, ...]) -> Float32:
    if not isinstance(given, np.ndarray) or given.shape != shape:
        found = getattr(given, "shape", type(given).__name__)
        raise ArgumentError(f"latents have shape {found}; this call needs {shape}")
    if given.dtype.kind not in "fiu":
        raise ArgumentError(f"latents are of type {given.dtype}; they must be numbers")
    with np.errstate(over="ignore"):  # seen below
        latents = given.astype(np.float32)
    if not np.isfinite(latents).all():
        raise ArgumentError("latents hold values that are not finite")
    return latents


def whole(name: str, value: Any) -> int:
    """A whole number of at least 1, or ``ArgumentError``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ArgumentError(f"{name} is {value!r}; it must be a whole number of at least 1")
    return int(value)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    for text in texts:
        if not isinstance(text, str):
            raise PromptError(f"the {name} is {text!r}; it must be text, or a list of texts")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(f"the {name} {text!r} holds bytes that are not UTF-8 text") from error
    return texts


def _shown(text: str, most: int = 400) -> str:
    """Quoted; of a long text, both ends."""
    if len(text) <= most:
        return repr(text)
    return f"{text[: most // 2]!r} ... {text[-most // 2 :]!r} ({len(text)} characters)"


def _seeds(seed: int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    if seed is None:
        import secrets

        first = secrets.randbits(32)  # short enough to type again
        return tuple((first + k) % 2**32 for k in range(count))
    if isinstance(seed, np.ndarray) and seed.ndim == 0:
        seed = seed.item()
    seeds: tuple[Any, ...] = (seed,)
    if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
        seeds = tuple(int(seed) + k for k in range(count))
    elif isinstance(seed, (list, tuple, range, np.ndarray)):
        seeds = tuple(seed)
        if len(seeds) != count:
            raise ArgumentError(f"{count} images need as many seeds; {len(seeds)} were given")
    for s in seeds:
        if isinstance(s, bool) or not isinstance(s, (int, np.integer)) or not 0 <= s <= MAX_SEED:
            raise ArgumentError(f"seed is {s!r}; it must be a whole number from 0 to {MAX_SEED}")
    return tuple(int(s) for s in seeds)
