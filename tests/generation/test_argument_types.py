"""Every argument of a call is refused by name, whatever it is, at once and before any work."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgediff
from edgediff import ArgumentError, PromptError
from edgediff.generation.arguments import NAMES
from edgediff.sampling.rng import TorchCpuGenerator

from ..support.strangers import STRANGERS

# What is no mistake.
FITTING = {
    *(("prompt", kind) for kind in ("long text", "texts for numbers")),
    ("negative_prompt", "long text"),
    ("on_x0", "type"),
}


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Path) -> edgediff.Pipeline:
    return edgediff.load(tiny_bundle)


@pytest.mark.parametrize("kind", STRANGERS)
def test_every_argument_refuses_strangers(pipe: edgediff.Pipeline, kind: str) -> None:
    for name in NAMES:
        if (name, kind) in FITTING:
            continue
        before = time.process_time()
        with pytest.raises((ArgumentError, PromptError)) as caught:
            pipe.stream(**{"prompt": "a cat", name: STRANGERS[kind]()})
        assert time.process_time() - before < 2, name
        message = str(caught.value)
        assert len(message) < 1200, name
        assert message.isprintable(), name
    assert pipe._parts is None or not pipe._parts._opened  # no engine was opened


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"timesteps": ["1", "0"]}, r"timesteps are \['1', '0'\]; they must be a list of finite numbers"),
        ({"timesteps": np.array(["1", "0"])}, "they must be a list of finite numbers"),
        ({"sigmas": [10**400]}, "sigmas are .*; they must be a list of finite numbers"),
        ({"timesteps": [True, False]}, "they must be a list of finite numbers"),
        ({"timesteps": np.linspace(900, 0, 10**6)}, "timesteps are 1000000 numbers; there may be at most 1000"),
        ({"sigmas": [0.0]}, "sigmas run from 0 to 0"),
        ({"guidance": np.array(["cfg", "apg"])}, r"no guidance array.*choose from cfg, cfg\+\+, apg, or an Apg"),
        ({"output_type": np.array(["np", "pil"])}, "no output_type array.*choose from pil, np, latent"),
        ({"prompt_syntax": np.array(["plain", "a1111"])}, "no prompt syntax array.*choose from a1111, plain"),
        ({"rng": np.array(["a", "b"])}, "no rng array.*choose from torch-cpu, torch-cuda, or a function"),
        ({"num_images_per_prompt": 10**9}, "num_images_per_prompt is 1000000000.* at most 1000 images"),
        ({"prompt": ["a"] * 40, "num_images_per_prompt": 26}, "is 26, of 40 prompts; one call makes at most 1000"),
        ({"prompt": ["a"] * 1001}, "1001 prompts were given; one call makes at most 1000 images"),
        ({"negative_prompt": ["a"] * 10**6}, "1000000 negative prompts were given"),
        ({"seed": range(10**9)}, "1 images need as many seeds; 1000000000 were given"),
        ({"rng": lambda seed: 5}, r"rng gave int; it must give a generator, with a method randn\(shape\)"),
        ({"rng": lambda seed: None}, "rng gave NoneType"),
    ],
)
def test_what_a_call_says(pipe: edgediff.Pipeline, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        pipe.stream(**{"prompt": "a cat"} | arguments)


class Own:
    """A caller's generator that gives something else."""

    def __init__(self, values: Any) -> None:
        self.values = values

    def randn(self, shape: tuple[int, ...]) -> Any:
        return self.values(shape)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (lambda shape: np.zeros(shape), r"a generator of rng gave float64\(1, 4, 8, 8\); its randn must give float32"),
        (lambda shape: np.zeros(3, np.float32), r"gave float32\(3,\); its randn must give float32\(1, 4, 8, 8\)"),
        (lambda shape: None, "gave NoneType"),
        (lambda shape: np.full(shape, np.nan, np.float32), "gave values that are not finite"),
    ],
)
def test_what_a_callers_generator_gives(pipe: edgediff.Pipeline, values: Any, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        pipe("a cat", num_inference_steps=1, rng=lambda seed: Own(values))
    ours = pipe("a cat", seed=3, num_inference_steps=1).latents
    theirs = pipe("a cat", seed=3, num_inference_steps=1, rng=lambda seed: Own(TorchCpuGenerator(seed).randn)).latents
    np.testing.assert_array_equal(ours, theirs)


class Text(str):
    pass


class Whole(int):
    pass


def test_subclasses_scalars_and_arrays_without_dimensions_stay_what_they_are(pipe: edgediff.Pipeline) -> None:
    plain = pipe("a cat", seed=3, num_inference_steps=2, guidance_scale=2.0, sampler="ddim", timesteps=[900, 1])
    given: dict[str, Any] = {
        "num_inference_steps": Whole(2),
        "seed": np.array(3),
        "guidance_scale": np.array(2.0),
        "sampler": Text("ddim"),
        "output_type": np.str_("pil"),
        "num_images_per_prompt": np.int16(1),
    }
    for timesteps in (np.array([900, 1]), (np.float32(900), np.int64(1)), [np.array(900), 1], range(900, 0, -899)):
        other = pipe(Text("a cat"), timesteps=timesteps, **given)
        np.testing.assert_array_equal(other.latents, plain.latents)


def test_parts_by_name(pipe: edgediff.Pipeline) -> None:
    for part in ("nothing", [], 10**5000, None, np.array(["unet", "a"])):
        for use in (lambda: pipe.engine(part), lambda: pipe.set_engine(part, dict)):  # noqa: B023
            with pytest.raises(ArgumentError, match=r"bundle 'tiny' has no part .*; choose from "):
                use()
    with pytest.raises(ArgumentError, match="engine is 5; it must be a function of named arrays"):
        pipe.set_engine("unet", 5)  # type: ignore[arg-type]
