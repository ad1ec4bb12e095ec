"""The reference is drawn by diffusers' own pipeline on the source: its class, scheduler, text encoding, loop, decoder.

Text encoders come first and go again; then the U-Net and the autoencoder stand together. Nothing of the bundle, of
our wrapped parts or of our loop takes part.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..onnx_graph.recipes import PartRecipe
from ..precision.precisions import Case
from ..sources.base import Source, encoders_of
from ..sources.loading import model_class
from .lazy_pipeline import collect_garbage
from .noise import BrownianNoise
from .recording import Trace, recorded
from .texts import Texts, encode_texts
from .twins import Twin

PIXELS = ("DDPMPipeline", "DDIMPipeline")
GREY = 4  # channels of latents that diffusers' pipelines take for a picture that is encoded already


@dataclass(frozen=True)
class Reference:
    """A reference is what diffusers drew: pictures (H, W, 3) uint8, a trace each, and the text encoders' cases."""

    pictures: list[NDArray[np.uint8]]
    traces: list[Trace]
    texts: dict[str, list[Case]]


@torch.no_grad()
def draw_by_diffusers(
    source: Source,
    facts: Mapping[str, Any],
    recipes: Sequence[PartRecipe],
    twin: Twin,
    calls: Sequence[Mapping[str, Any]],
    arrays: Sequence[Mapping[str, NDArray[Any]]],
) -> Reference:
    """Draw the picture of each call by diffusers' pipeline.

    Args:
        source: the checkpoint.
        facts: ``model_facts(source)``: sizes, and what the golden calls leave to the bundle's defaults.
        recipes: the parts, for the names of what is recorded.
        twin: the scheduler.
        calls: arguments of ``pipe(...)``, as ``picture_arguments`` makes them.
        arrays: what each call takes besides.
    """
    guidance = float(facts["defaults"]["guidance_scale"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pipelines without all of their parts
        texts = _encode(source, recipes, twin, calls, guidance)
        unet, vae = source.reference("unet"), source.reference("vae") if source.has("vae") else None
        pipe = make_pipeline(source, twin, unet=unet, vae=vae)
        pictures, traces = [], []
        for k, (call, extra) in enumerate(zip(calls, arrays, strict=True)):
            picture, trace = _draw(pipe, source, facts, call, extra, texts.kwargs[k] if texts else {}, guidance)
            pictures.append(picture)
            traces.append(trace)
    return Reference(pictures, traces, texts.cases if texts else {})


def make_pipeline(source: Source, twin: Twin, **parts: Any) -> Any:
    """Make the source's pipeline of diffusers with these parts, and None for all others."""
    cls, scheduler = model_class(source.pipeline), twin.scheduler
    settings: dict[str, Any] = {"requires_safety_checker": False, "add_watermarker": False}
    known = inspect.signature(cls.__init__).parameters
    for name in known:
        if (value := source.setting(name)) is not None and not isinstance(value, list):
            settings.setdefault(name, value)
    optional = ("safety_checker", "feature_extractor", "image_encoder")
    needed = [name for name, p in known.items() if p.default is inspect.Parameter.empty]
    given = {
        **dict.fromkeys((*needed, *optional)),
        **settings,
        **parts,
        "scheduler": type(scheduler).from_config(scheduler.config),
    }
    pipe = cls(**{name: value for name, value in given.items() if name in known and name != "self"})
    # Pipelines of latents change settings of the scheduler that they are given. A model of pixels clips if its folder
    # says so, and a scheduler that was made for the proof is as it must be.
    if twin.note or (parts.get("unet") is not None and parts.get("vae") is None):
        pipe.scheduler = type(scheduler).from_config(scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _encode(
    source: Source, recipes: Sequence[PartRecipe], twin: Twin, calls: Sequence[Mapping[str, Any]], guidance: float
) -> Texts | None:
    pairs = encoders_of(source)
    if not pairs:
        return None
    parts: dict[str, Any] = {}
    for encoder, tokenizer in pairs:
        parts[encoder], parts[tokenizer] = source.reference(encoder), source.reference_tokenizer(tokenizer)
    pipe = make_pipeline(source, twin, **parts)
    embedded = source.hollow("unet").config.get("time_cond_proj_dim") is not None
    guided = guidance > 1 and not embedded and source.pipeline != "LatentConsistencyModelPipeline"
    texts = encode_texts(pipe, [r for r in recipes if r.component in dict(pairs)], calls, guided)
    size = 4 * sum(p.numel() for encoder, _ in pairs for p in parts[encoder].parameters())
    del pipe, parts
    collect_garbage(size)  # before the U-Net comes
    return texts


def _draw(
    pipe: Any,
    source: Source,
    facts: Mapping[str, Any],
    call: Mapping[str, Any],
    extra: Mapping[str, NDArray[Any]],
    texts: Mapping[str, Any],
    guidance: float,
) -> tuple[NDArray[np.uint8], Trace]:
    """Draw one picture."""
    latent, seed, side = facts["latent"], call["seed"], (call["height"], call["width"])
    cells = tuple(v // latent["factor"] for v in side)
    generator = torch.Generator().manual_seed(seed)
    arguments: dict[str, Any] = {"num_inference_steps": call["num_inference_steps"], "generator": generator}
    steps: torch.Generator | None = None
    if source.pipeline in PIXELS:
        pipe.unet.register_to_config(sample_size=list(side))  # read for the picture's size alone
        arguments["output_type"] = "np"
    else:
        arguments |= {**texts, "guidance_scale": guidance, "output_type": "pt" if pipe.vae is not None else "latent"}
        if "Img2Img" in source.pipeline:
            steps = torch.Generator().manual_seed(seed)  # ours is given its start, and draws for the steps alone
            arguments |= {"image": torch.zeros(1, GREY, *cells), "strength": 1.0}
        else:
            scale = 1 if pipe.vae is not None else pipe.vae_scale_factor  # without one it takes a cell for 8 pixels
            arguments |= {"height": side[0] * scale, "width": side[1] * scale}
        if "Inpaint" in source.pipeline:
            arguments["strength"] = 1.0
            if extra:
                arguments |= {name: Image.fromarray(extra[name]) for name in ("image", "mask_image")}
            else:  # its U-Net takes no mask: everything is drawn anew
                steps = torch.Generator().manual_seed(seed)
                noise = torch.randn(1, latent["channels"], *cells, generator=steps)
                blank = torch.zeros(1, GREY, *cells)
                arguments |= {"latents": noise, "image": blank, "masked_image_latents": blank}
                arguments["mask_image"] = Image.new("L", side[::-1], 255)
    clipped = bool(pipe.scheduler.config.get("clip_sample"))
    with recorded(pipe, latent["shift"], clipped, steps) as trace, BrownianNoise(pipe.scheduler, steps or generator):
        images = pipe(**arguments).images
        if pipe.scheduler is not None and source.has("vae") and not trace.calls["vae_encoder"]:
            pipe.vae.encode(pipe.image_processor.preprocess(images))
    values = images[0] if isinstance(images, np.ndarray) else _picture(pipe, images)
    return (values * 255).round().astype(np.uint8), trace


def _picture(pipe: Any, images: torch.Tensor) -> NDArray[Any]:
    """A picture (H, W, 3) in [0, 1], of one that was decoded (in [0, 1]) or of pixels in [-1, 1]."""
    if pipe.vae is None:
        images = pipe.image_processor.postprocess(images, output_type="pt")
    return np.asarray(images[0].permute(1, 2, 0).float().numpy())
