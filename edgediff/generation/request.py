"""A call's arguments, checked before any work starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..arrays import Float32
from ..bundle.bounds import MAX_SIZE
from ..bundle.manifest import Bundle
from ..checks import is_number, is_whole, number, one_of, positive
from ..engines.memory import Demand
from ..errors import ArgumentError, PromptError, choices, shown
from ..prompts.chunks import PromptChunks
from ..prompts.textual_inversion import Embeddings
from ..prompts.tokenizer import Tokenizer
from ..prompts.weights import SYNTAXES
from ..sampling.guidance import METHODS, Apg, Combine, Hook, combiner
from ..sampling.planning import Plan, plan
from ..sampling.rng import Generator, find_generator
from .arguments import MAX_IMAGES, OUTPUT_TYPES, Arguments
from .masks import Masked, check_masked
from .seeds import check_latents, check_seeds
from .sizes import Sizes, check_sizes
from .texts import check_texts, tokenised
from .watch import check_deadline

CFG_PLUS_PLUS = 0.6  # default guidance_scale of cfg++ (the paper's lambda)


@dataclass(frozen=True)
class Request:
    """A request is one checked call: every argument has a value and is known to be usable."""

    arguments: Arguments
    prompts: tuple[str, ...]  # one an image
    negatives: tuple[str, ...]
    texts: Mapping[str, tuple[PromptChunks, ...]]  # of each prompt that the text encoders will read, one an encoder
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
    deadline: float | None = None  # seconds

    def combiner(self) -> Combine | None:
        """Fresh unfused guidance for one run, where the call asks for any."""
        return _combiner(self.plan, self.arguments, self.clip)


def check(
    bundle: Bundle,
    tokenizers: Sequence[Tokenizer],
    embeddings: Embeddings,
    arguments: Arguments,
    allow: Callable[[Demand], None],
) -> Request:
    """The checked form of a call's arguments. ``allow`` refuses calls that memory does not hold, before anything is
    made that grows with the number or the size of the pictures.

    Warns:
        PromptWarning: words of a prompt were cut.

    Raises:
        ArgumentError, PromptError: see ``Arguments``.
        MemoryLimitError: as ``allow``.
    """
    prompts, negatives = check_texts(arguments)
    per = positive("num_images_per_prompt", arguments.num_images_per_prompt)
    if per > MAX_IMAGES // len(prompts):
        raise ArgumentError(
            f"num_images_per_prompt is {shown(per)}, of {len(prompts)} prompts; one call makes at most {MAX_IMAGES} "
            "images: call again for more"
        )
    width, height = _size(bundle, arguments)
    one_of("output_type", arguments.output_type, OUTPUT_TYPES)
    one_of("prompt syntax", arguments.prompt_syntax, SYNTAXES)
    for name in ("clip_skip", "negative_clip_skip"):
        _check_clip_skip(bundle, name, getattr(arguments, name))
    table = plan_for(bundle, arguments)
    _check_guidance(bundle, arguments, table)
    _check_times(bundle, table)
    decodes = arguments.output_type != "latent" and bundle.latent.factor > 1
    allow(Demand(len(prompts) * per, width, height, table.guided, table.depth, decodes))
    prompts = tuple(p for p in prompts for _ in range(per))
    negatives = tuple(n for n in negatives for _ in range(per))
    latent = bundle.latent
    shape = (len(prompts), latent.channels, height // latent.factor, width // latent.factor)
    latents = None if arguments.latents is None else check_latents(arguments.latents, shape)
    seeds = check_seeds(arguments.seed, len(prompts))
    generator = find_generator(arguments.rng)
    generator(seeds[0])  # a function of the caller's is seen to give one
    sizes = check_sizes(bundle, arguments, width, height)
    masked = check_masked(bundle, arguments.image, arguments.mask_image, width, height)
    if tokenizers and arguments.prompt is None:
        raise PromptError('no prompt was given; prompt="" draws without one')
    if not tokenizers and any((*prompts, *negatives)):
        raise PromptError(
            f"bundle {bundle.name!r} takes no prompt; it was given {shown(next(filter(None, prompts + negatives)))}"
        )
    read = {"prompt": prompts, "negative prompt": negatives if table.guided else ()}
    return Request(
        arguments=arguments,
        prompts=prompts,
        negatives=negatives,
        texts=tokenised(bundle, tokenizers, embeddings, arguments.prompt_syntax, read),
        sizes=sizes,
        masked=masked,
        embeddings=embeddings,
        seeds=seeds,
        generator=generator,
        plan=table,
        width=width,
        height=height,
        latents=latents,
        clip=bundle.clip_sample,
        guidance_embedding=_guidance_embedding(bundle, arguments),
        deadline=check_deadline(arguments.deadline),
    )


def plan_for(bundle: Bundle, arguments: Arguments) -> Plan:
    """The table of a call on this model; what is None is the bundle's default.

    CFG++ has its own default scale, since its lambda is another quantity. Where the U-Net takes the scale as an input,
    there is no guidance in the table; where it reads no text, there is none at all.

    Raises:
        ArgumentError: as ``edgediff.plan``; guidance for a model that takes no prompt.
    """
    method, defaults = arguments.guidance, bundle.defaults
    if not isinstance(method, Apg):
        one_of("guidance", method, METHODS, ", or an Apg(...)")
    plus = isinstance(method, str) and method == "cfg++"
    scale: float | Sequence[float] = CFG_PLUS_PLUS if plus else defaults.guidance_scale
    scale = scale if arguments.guidance_scale is None else arguments.guidance_scale
    scale = 1.0 if bundle.embeds_guidance else scale
    explicit = arguments.timesteps is not None or arguments.sigmas is not None
    steps = None if explicit else defaults.num_inference_steps
    table = plan(
        bundle.schedule,
        defaults.sampler if arguments.sampler is None else arguments.sampler,
        steps if arguments.num_inference_steps is None else arguments.num_inference_steps,
        scale,
        arguments.spacing,
        eta=arguments.eta,
        guidance="cfg++" if plus else "cfg",
        guidance_interval=arguments.guidance_interval,
        timesteps=arguments.timesteps,
        sigmas=arguments.sigmas,
    )
    if table.guided and not bundle.text:
        raise ArgumentError(
            f"guidance_scale is {shown(scale)}; bundle {bundle.name!r} takes no prompt to guide by: leave it 1"
        )
    return table


def _check_guidance(bundle: Bundle, arguments: Arguments, table: Plan) -> None:
    """What runs between the halves of the rows, and that it goes with the plan."""
    for name in ("guidance_rescale", "dynamic_thresholding_ratio"):
        if getattr(arguments, name) is not None:
            number(name, getattr(arguments, name), 0, 1)
    if arguments.on_x0 is not None and not callable(arguments.on_x0):
        raise ArgumentError(f"on_x0 is {shown(arguments.on_x0)}; it must be a function of an array")
    _combiner(table, arguments, bundle.clip_sample)


def _combiner(table: Plan, arguments: Arguments, clip: float | None) -> Combine | None:
    hook = arguments.on_x0
    if clip is not None:
        hook = _clipped(clip, arguments.on_x0)
    return combiner(table, arguments.guidance, arguments.guidance_rescale, arguments.dynamic_thresholding_ratio, hook)


def _clipped(limit: float, then: Hook | None) -> Hook:
    def clip(x0: Float32) -> Float32:
        clipped = np.clip(x0, -limit, limit)
        return clipped if then is None else then(clipped)

    return clip


def _guidance_embedding(bundle: Bundle, arguments: Arguments) -> float | None:
    """The scale that the U-Net reads; None where guidance is the table's."""
    if not bundle.embeds_guidance:
        return None
    scale = bundle.defaults.guidance_scale if arguments.guidance_scale is None else arguments.guidance_scale
    if not is_number(scale, 1, 100):
        raise ArgumentError(f"guidance_scale is {shown(scale)}; this U-Net takes one number as an input, 1 .. 100")
    return float(scale)  # type: ignore[arg-type]


def _size(bundle: Bundle, arguments: Arguments) -> tuple[int, int]:
    defaults, multiple = bundle.defaults, bundle.latent.size_multiple
    height = positive("height", defaults.height if arguments.height is None else arguments.height)
    width = positive("width", defaults.width if arguments.width is None else arguments.width)
    for name, value, fixed in (("height", height, bundle.fixed_size[1]), ("width", width, bundle.fixed_size[0])):
        if value > MAX_SIZE:
            raise ArgumentError(f"{name} is {shown(value)}; it must be at most {MAX_SIZE}")
        if fixed not in (None, value):
            raise ArgumentError(f"{name} is {value}; the U-Net of bundle {bundle.name!r} takes {fixed} alone")
        if value % multiple:
            below = value // multiple * multiple
            near = [str(v) for v in (below, below + multiple) if v]
            raise ArgumentError(f"{name} is {value}; it must be a multiple of {multiple}: try {' or '.join(near)}")
    return width, height


def _check_times(bundle: Bundle, table: Plan) -> None:
    """Refuse a plan whose timesteps are not whole numbers, for another exporter's graph that takes no others."""
    if bundle.foreign is None or not bundle.foreign.parts["unet"].whole_times:
        return
    for k, row in enumerate(table.rows):
        if not float(row.t).is_integer():
            raise ArgumentError(
                f"call {k + 1} of this plan is at timestep {row.t:g}; the U-Net of bundle {bundle.name!r} takes whole "
                "timesteps: choose a spacing of timesteps (leading, trailing, linspace), or another sampler"
            )


def _check_clip_skip(bundle: Bundle, name: str, clip_skip: int) -> None:
    known = (0, *bundle.clip_skips)
    if not is_whole(clip_skip) or clip_skip not in known:
        foreign = "" if bundle.foreign is None else " (its graph, another exporter's, gives no earlier states)"
        raise ArgumentError(
            f"{name} is {shown(clip_skip)}; the text encoder of bundle {bundle.name!r} offers "
            f"{choices(map(str, known))}{foreign}"
        )
