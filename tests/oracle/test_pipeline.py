"""Whole calls against StableDiffusionPipeline with the same weights: what each argument does to the latents."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from safetensors.numpy import save_file

import edgediff

from ..support.reference import open_reference
from .cases import PIPELINE

PROMPT = "a red apple on a blue background"
LONG = ", ".join(f"a {colour} {thing}" for thing in ("cat", "dog", "fish") for colour in ("red", "green", "blue") * 4)


@pytest.fixture(params=["tiny", "emoji"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, edgediff.Pipeline]:
    """(diffusers' pipeline with DDIM, ours) on the tiny and on the built-in model."""
    names = ("tiny_source", "tiny_bundle") if request.param == "tiny" else (None, "emoji_fp32")
    source = request.getfixturevalue(names[0]) if names[0] else PIPELINE
    theirs = open_reference(source)
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config, clip_sample=False)
    return theirs, edgediff.load(request.getfixturevalue(names[1]), threads=2)


def compare(pair: tuple[Any, edgediff.Pipeline], mine: dict[str, Any], their: dict[str, Any] | None = None) -> float:
    """Largest difference of latents after 5 steps, relative to the largest value."""
    common: dict[str, Any] = {"num_inference_steps": 5, "guidance_scale": 5.0, "prompt": PROMPT}
    theirs, ours = pair
    arguments = {**common, **(mine if their is None else their)}
    if "timesteps" in arguments:
        del arguments["num_inference_steps"]
    if arguments.get("prompt_embeds") is not None:
        del arguments["prompt"]
    generator = torch.Generator().manual_seed(3)
    expected = theirs(generator=generator, output_type="latent", **arguments).images.detach().numpy()
    arguments = {"sampler": "ddim", **common, **mine}
    if "timesteps" in arguments:
        del arguments["num_inference_steps"]
    got = ours(seed=3, output_type="latent", **arguments).latents
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"guidance_rescale": 0.7},
        {"guidance_scale": 1.0},
        {"eta": 0.6},
        {"negative_prompt": "a green pear"},
    ],
)
def test_arguments(pair: tuple[Any, edgediff.Pipeline], arguments: dict[str, Any]) -> None:
    plain = pair[1](PROMPT, seed=3, num_inference_steps=5, guidance_scale=5.0, sampler="ddim").latents
    assert compare(pair, arguments) < 1e-4
    if arguments:
        changed = pair[1](
            **{
                "prompt": PROMPT,
                "seed": 3,
                "num_inference_steps": 5,
                "guidance_scale": 5.0,
                "sampler": "ddim",
                **arguments,
            }
        )
        assert np.abs(changed.latents - plain).max() > 1e-3


def test_explicit_timesteps(pair: tuple[Any, edgediff.Pipeline]) -> None:
    pair[0].scheduler = DPMSolverMultistepScheduler.from_config(pair[0].scheduler.config)
    steps = {"timesteps": [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]}
    assert compare(pair, {**steps, "sampler": "dpmpp_2m"}, steps) < 1e-4


def encoded(theirs: Any, chunks: list[str]) -> torch.Tensor:
    """Chunks one after the other, each by diffusers' own encoding of a prompt."""
    with torch.no_grad():
        return torch.cat([theirs.encode_prompt(text, "cpu", 1, False)[0] for text in chunks], dim=1)


def test_break_and_long_prompts(pair: tuple[Any, edgediff.Pipeline]) -> None:
    theirs, ours = pair
    parts = ["a red apple", "on a blue background"]
    negative = ["a green pear", "a dog"]
    expected = {"prompt_embeds": encoded(theirs, parts), "negative_prompt_embeds": encoded(theirs, negative)}
    mine = {"prompt": " BREAK ".join(parts), "negative_prompt": " BREAK ".join(negative)}
    assert compare(pair, mine, expected) < 1e-4
    # A long list of things breaks behind a comma.
    tokenizer = ours._open_tokenizers()[0]
    size, rest, pieces = tokenizer.max_length - 2, tokenizer.tokens(LONG), []
    while len(rest) > size:
        commas = [k for k, (i, _) in enumerate(rest[:size]) if i == tokenizer.comma]
        end = size if rest[size][0] == tokenizer.comma else commas[-1] + 1
        pieces.append(LONG[rest[0][1] : rest[end][1]])
        rest = rest[end:]
    pieces.append(LONG[rest[0][1] :])
    assert len(pieces) > 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = {"prompt_embeds": encoded(theirs, pieces), "guidance_scale": 1.0}
        assert compare(pair, {"prompt": LONG, "guidance_scale": 1.0}, expected) < 1e-4


def test_clip_skip(pair: tuple[Any, edgediff.Pipeline]) -> None:
    """Of the prompt alone, as in diffusers, or of both, as in A1111."""
    theirs, ours = pair
    for skip in ours.bundle.clip_skips:
        with torch.no_grad():
            negative = theirs.encode_prompt("", "cpu", 1, False, clip_skip=skip)[0]
        assert compare(pair, {"clip_skip": skip}) < 1e-4
        both = {"clip_skip": skip, "negative_clip_skip": skip}
        assert compare(pair, both, {"clip_skip": skip, "negative_prompt_embeds": negative}) < 1e-4


@pytest.mark.parametrize("vectors", [1, 3])
@pytest.mark.parametrize("form", ["a1111", "diffusers"])
def test_textual_inversion(pair: tuple[Any, edgediff.Pipeline], tmp_path: Path, vectors: int, form: str) -> None:
    theirs, ours = pair
    width = theirs.text_encoder.config.hidden_size
    learned = np.random.default_rng(vectors).standard_normal((vectors, width)).astype(np.float32) * 0.05
    path = tmp_path / "dotty.safetensors"
    key = "emb_params" if form == "a1111" else "<dotty>"
    save_file({key: learned if vectors > 1 or form == "a1111" else learned[0]}, path)
    token = "dotty" if form == "a1111" else "<dotty>"
    prompt = f"a {token} apple, {token}"
    plain = compare(pair, {"prompt": "a apple,"})
    theirs.load_textual_inversion(str(path), token=token)
    assert ours.load_textual_inversion(path) == token
    assert compare(pair, {"prompt": prompt}) < 1e-4
    assert plain < 1e-4
    ours.unload_textual_inversion(token)
    words = ours(prompt, seed=3, num_inference_steps=2).latents
    ours.load_textual_inversion(path)
    assert np.abs(words - ours(prompt, seed=3, num_inference_steps=2).latents).max() > 1e-4
