"""Calls, streams and bad arguments, on a tiny model with random weights; pictures are judged in test_quality."""

from __future__ import annotations

import builtins
import copy
import inspect
import math
import os
import pickle
import re
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import edgediff
from edgediff import ArgumentError, EngineError, PromptError, PromptWarning
from edgediff.generation.arguments import NAMES
from edgediff.sampling.names import SamplerName
from edgediff.sampling.rng import TorchCpuGenerator, TorchCudaGenerator


@pytest.fixture(scope="module")
def pipe(tiny_bundle: Path) -> edgediff.Pipeline:
    return edgediff.load(tiny_bundle, threads=1)


class Counting:
    """An engine that notes the batch of each call."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.inputs, self.outputs, self.batches = engine, engine.inputs, engine.outputs, []

    def __call__(self, **inputs: Any) -> Any:
        self.batches.append(len(next(iter(inputs.values()))))
        return self.engine(**inputs)


def counted(bundle: Path, part: str) -> tuple[edgediff.Pipeline, Counting]:
    pipe = edgediff.load(bundle, threads=1)
    engine = Counting(pipe.engine(part))
    pipe.set_engine(part, engine)
    return pipe, engine


def test_picture(pipe: edgediff.Pipeline) -> None:
    result = pipe("a cat", num_inference_steps=2, seed=5)
    (image,) = result.images
    assert image.size == (32, 32)
    assert image.mode == "RGB"
    assert result.seeds == (5,)
    assert result.latents.shape == (1, 4, 8, 8)
    assert result.latents.dtype == np.float32
    text = image.info["parameters"]
    assert text == result.parameters[0]
    assert text.splitlines()[0] == "a cat"
    assert "Steps: 2, Sampler: PLMS, Schedule type: leading, CFG scale: 7.5, Seed: 5, Size: 32x32" in text


def test_same_seed_same_bytes_and_threads(pipe: edgediff.Pipeline) -> None:
    def one(seed: int) -> bytes:
        latents: bytes = pipe("a cat", num_inference_steps=3, seed=seed, sampler="euler_a").latents.tobytes()
        return latents

    alone = [one(seed) for seed in range(4)]
    assert len(set(alone)) == 4
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(one, range(4))) == alone


@pytest.mark.parametrize("sampler", ["ddim", "euler_a"])
def test_image_of_a_batch_equals_the_single_one(pipe: edgediff.Pipeline, sampler: str) -> None:
    arguments: dict[str, Any] = {"num_inference_steps": 3, "sampler": sampler}
    batch = pipe(["a cat", "a dog"], num_images_per_prompt=2, seed=10, **arguments)
    assert batch.seeds == (10, 11, 12, 13)
    for k, prompt in enumerate(["a cat", "a cat", "a dog", "a dog"]):
        single = pipe(prompt, seed=10 + k, **arguments)
        np.testing.assert_allclose(batch.latents[k], single.latents[0], atol=2e-5)


def test_unet_calls(tiny_bundle: Path) -> None:
    pipe, unet = counted(tiny_bundle, "unet")
    pipe("a cat", num_inference_steps=3, sampler="ddim")
    assert unet.batches == [2, 2, 2]
    unet.batches.clear()
    pipe("a cat", num_inference_steps=3, sampler="ddim", guidance_scale=1.0)
    assert unet.batches == [1, 1, 1]
    unet.batches.clear()
    pipe("a cat", num_inference_steps=10, sampler="ddim", guidance_interval=(0.2, 0.7))
    assert unet.batches == [1, 1, 2, 2, 2, 2, 2, 1, 1, 1]


def test_prompts_of_several_lengths_in_a_batch(tiny_bundle: Path) -> None:
    """Each picture is that of its prompt alone: nothing is padded to the longest."""
    pipe, unet = counted(tiny_bundle, "unet")
    prompts = ["a cat", "a cat BREAK a dog", "a dog " * 80, "a fish"]
    negatives = ["", "a pear", "a pear BREAK a plum", ""]
    arguments: dict[str, Any] = {"num_inference_steps": 2, "sampler": "euler"}
    batch = pipe(prompts, negative_prompt=negatives, seed=10, **arguments)
    assert unet.batches == [5, 2, 1] * 2  # of one, two and three chunks
    for k, (prompt, negative) in enumerate(zip(prompts, negatives, strict=True)):
        single = pipe(prompt, negative_prompt=negative, seed=10 + k, **arguments)
        np.testing.assert_allclose(batch.latents[k], single.latents[0], atol=2e-5)


def test_weights(pipe: edgediff.Pipeline) -> None:
    def latents(prompt: str, **more: Any) -> np.ndarray:
        out: np.ndarray = pipe(prompt, seed=1, num_inference_steps=2, **more).latents
        return out

    plain = latents("a red cat")
    np.testing.assert_array_equal(latents("a (red:1.0) cat"), plain)
    np.testing.assert_array_equal(latents(r"a red \(cat\)"), latents("a red (cat)", prompt_syntax="plain"))
    heavy = latents("a (red:1.4) cat")
    assert np.abs(heavy - plain).max() > 1e-5
    np.testing.assert_array_equal(heavy, latents("a (red:1.4) cat"))
    with pytest.raises(PromptError, match=r"the \( at character 3 of the prompt is never closed"):
        pipe.stream("a (red cat")
    with pytest.raises(PromptError, match="of the negative prompt 2 is never closed"):
        pipe.stream(["a", "b"], negative_prompt=["x", "(y"])
    with pytest.raises(ArgumentError, match="no prompt syntax 'b'; choose from a1111, plain"):
        pipe.stream("a cat", prompt_syntax="b")


def test_noise_of_both_generators(pipe: edgediff.Pipeline) -> None:
    arguments: dict[str, Any] = {"num_inference_steps": 2, "sampler": "ddim", "output_type": "latent"}
    for rng, made in (("torch-cpu", TorchCpuGenerator), ("torch-cuda", TorchCudaGenerator)):
        start = made(4).randn((1, 4, 8, 8))
        found = pipe("a cat", seed=4, rng=rng, **arguments)
        np.testing.assert_array_equal(found.latents, pipe("a cat", latents=start, **arguments).latents)
    assert "RNG: torch-cuda" in found.parameters[0]
    small = pipe("a cat", seed=4, rng=lambda s: TorchCudaGenerator(s, 1, 256), **arguments)
    np.testing.assert_array_equal(small.latents, found.latents)  # so few values do not fill even that GPU
    assert "RNG: custom" in small.parameters[0]


def test_parameters_name_what_was_asked(pipe: edgediff.Pipeline) -> None:
    result = pipe(
        "a cat",
        seed=1,
        sampler="DPM++ 2M Karras",
        num_inference_steps=3,
        guidance_scale=[5.0, 4.0, 3.0],
        guidance="apg",
        guidance_interval=(0.0, 0.5),
        guidance_rescale=0.3,
        clip_skip=1,
        negative_clip_skip=1,
        prompt_syntax="plain",
        on_x0=lambda x0: x0,
    )
    for fact in (
        "Steps: 3, Sampler: DPM++ 2M, Schedule type: karras, CFG scale: 5 4 3",
        "Guidance: apg",
        "Guidance interval: 0 to 0.5",
        "Guidance rescale: 0.3",
        "Clip skip: 2",
        "Negative clip skip: 2",
        "Prompt syntax: plain",
        "Hook: on_x0",
    ):
        assert fact in result.parameters[0]
    assert "Sigmas: 3 0.5, Version" in pipe("a cat", seed=1, sigmas=[3.0, 0.5]).parameters[0]


def test_scalars_of_numpy(pipe: edgediff.Pipeline) -> None:
    arguments: dict[str, Any] = {"num_inference_steps": np.int64(2), "sampler": "ddim"}
    a = pipe("a cat", seed=np.array(3), guidance_scale=np.array(5.0), clip_skip=np.int64(1), **arguments)  # type: ignore[arg-type]
    b = pipe("a cat", seed=3, guidance_scale=5.0, clip_skip=1, **arguments)
    np.testing.assert_array_equal(a.latents, b.latents)


def test_a_hook_that_breaks_is_named(pipe: edgediff.Pipeline) -> None:
    with pytest.raises(ArgumentError, match="on_x0 gave values that are not finite"):
        pipe("a cat", num_inference_steps=2, on_x0=lambda x0: x0 * np.nan)


def test_guidance_reaches_the_loop(pipe: edgediff.Pipeline) -> None:
    seen: list[float] = []

    def hook(x0: np.ndarray) -> np.ndarray:
        seen.append(float(np.abs(x0).max()))
        return x0.clip(-0.1, 0.1)

    arguments: dict[str, Any] = {"seed": 1, "num_inference_steps": 4, "sampler": "ddim", "output_type": "latent"}
    plain = pipe("a cat", **arguments).latents
    hooked = pipe("a cat", on_x0=hook, **arguments).latents
    assert len(seen) == 4
    # DDIM ends a little above the clean level here: what is not clipped is its noise.
    assert np.abs(hooked).max() < 0.3 < np.abs(plain).max()
    for other in (
        {"guidance": "apg"},
        {"guidance": "cfg++"},
        {"dynamic_thresholding_ratio": 0.8},
        {"guidance": edgediff.Apg(eta=0.5, norm_threshold=1.0)},
    ):
        assert np.abs(pipe("a cat", **arguments, **other).latents - plain).max() > 1e-4


def test_leaving_the_loop_cancels(tiny_bundle: Path) -> None:
    pipe, unet = counted(tiny_bundle, "unet")
    for step in pipe.stream("a cat", num_inference_steps=50):
        if step.index == 1:
            break
    assert len(unet.batches) == 2


def test_stream(pipe: edgediff.Pipeline) -> None:
    steps = list(pipe.stream("a cat", num_inference_steps=3, sampler="ddim", seed=1, num_images_per_prompt=2))
    assert [(s.index, s.total, s.last) for s in steps] == [(0, 3, False), (1, 3, False), (2, 3, True)]
    assert [p.size for p in steps[0].preview()] == [(32, 32)] * 2
    assert [p.size for p in steps[0].decode()] == [(32, 32)] * 2
    with pytest.raises(ArgumentError, match="step 1 of 3 is not the last"):
        steps[0].result()
    whole = pipe("a cat", num_inference_steps=3, sampler="ddim", seed=1, num_images_per_prompt=2)
    np.testing.assert_array_equal(steps[-1].result().latents, whole.latents)


def test_starting_latents_and_outputs(pipe: edgediff.Pipeline) -> None:
    start = TorchCpuGenerator(3).randn((1, 4, 8, 8))
    a = pipe("a cat", num_inference_steps=2, latents=start, output_type="latent")
    b = pipe("a cat", num_inference_steps=2, seed=3, output_type="np")
    np.testing.assert_array_equal(a.images, b.latents)
    assert b.images.shape == (1, 32, 32, 3)
    assert b.images.dtype == np.uint8
    assert "Seed" not in a.parameters[0]
    noisy = pipe("a cat", num_inference_steps=2, latents=start, seed=9, sampler="euler_a")
    assert "Seed: 9" in noisy.parameters[0]


def test_negative_prompt_and_size_matter(pipe: edgediff.Pipeline) -> None:
    plain = pipe("a cat", num_inference_steps=2, seed=1)
    steered = pipe("a cat", num_inference_steps=2, seed=1, negative_prompt="a dog")
    assert not np.array_equal(plain.latents, steered.latents)
    assert "Negative prompt: a dog" in steered.parameters[0]
    wide = pipe("a cat", num_inference_steps=1, width=64, height=40)
    assert wide.images[0].size == (64, 40)


def test_random_seed_can_be_repeated(pipe: edgediff.Pipeline) -> None:
    first = pipe("a cat", num_inference_steps=1)
    again = pipe("a cat", num_inference_steps=1, seed=first.seeds[0])
    np.testing.assert_array_equal(first.latents, again.latents)
    assert first.seeds != pipe("a cat", num_inference_steps=1).seeds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": "plmss"}, "no sampler 'plmss'; choose from ddim"),
        ({"spacing": "tight"}, "no spacing 'tight'"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"num_inference_steps": 1001}, "num_inference_steps is 1001"),
        ({"guidance_scale": math.nan}, "guidance_scale is nan"),
        ({"guidance_scale": math.inf}, "guidance_scale is inf"),
        ({"guidance_scale": 1e30}, r"guidance_scale is 1e\+30; it must be -1000 \.\. 1000"),
        ({"guidance": "cfq"}, "no guidance 'cfq'; choose from cfg, cfg[+][+], apg"),
        ({"guidance": "cfg++", "sampler": "dpmpp_2m"}, "needs a sampler without history"),
        ({"guidance": "cfg++", "sampler": "ddim", "guidance_rescale": 0.5}, "cannot be combined"),
        ({"guidance_rescale": 1.5}, "guidance_rescale is 1.5"),
        ({"guidance_rescale": None, "dynamic_thresholding_ratio": "x"}, "dynamic_thresholding_ratio is 'x'"),
        ({"on_x0": 5}, "on_x0 is 5; it must be a function"),
        ({"rng": "mersenne"}, "no rng 'mersenne'; choose from torch-cpu, torch-cuda"),
        ({"clip_skip": 9}, "clip_skip is 9; the text encoder of bundle 'tiny' offers 0, 1"),
        ({"negative_clip_skip": 9}, "negative_clip_skip is 9; the text encoder"),
        ({"clip_skip": True}, "clip_skip is True"),
        ({"clip_skip": 1.0}, "clip_skip is 1.0"),
        ({"latents": np.full((1, 4, 8, 8), "a")}, "latents are of type <U1"),
        ({"latents": np.full((1, 4, 8, 8), 1j)}, "latents are of type complex128"),
        ({"latents": np.full((1, 4, 8, 8), 1e300)}, "latents hold values that are not finite"),
        ({"timesteps": [5, 10]}, "each must be less"),
        ({"num_inference_steps": 5, "sigmas": [3.0]}, "num_inference_steps is 5, but 1 levels were given"),
        ({"eta": 0.5, "sampler": "heun"}, "takes no eta"),
        ({"height": 30}, "height is 30; it must be a multiple of 4: try 28 or 32"),
        ({"width": 0}, "width is 0"),
        ({"width": 3}, "try 4"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 1844"),
        ({"seed": [1, 2]}, "1 images need as many seeds; 2 were given"),
        ({"seed": ["a"]}, "seed is 'a'"),
        ({"seed": "12"}, "seed is '12'"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"seed": True}, "seed is True"),
        ({"sampler": ["ddim"]}, "no sampler"),
        ({"width": 8 * 10**9}, "width is 8000000000; it must be at most 16384"),
        ({"latents": "abc"}, "latents are str; this call needs"),
        ({"latents": np.full((1, 4, 8, 8), np.nan)}, "latents hold values that are not finite"),
        ({"output_type": "jpeg"}, "no output_type 'jpeg'; choose from pil, np, latent"),
        ({"latents": np.zeros((1, 4, 4, 4))}, r"latents have shape \(1, 4, 4, 4\); this call needs \(1, 4, 8, 8\)"),
    ],
)
def test_bad_arguments_before_any_work(tiny_bundle: Path, arguments: dict[str, Any], message: str) -> None:
    pipe = edgediff.load(tiny_bundle)
    with pytest.raises(ArgumentError, match=message):
        pipe.stream("a cat", **arguments)  # not even started
    assert pipe._open_parts()._opened == {}


def test_short_names_in_a_session(pipe: edgediff.Pipeline) -> None:
    steps = list(pipe.stream("a cat", seed=1, num_inference_steps=2, sampler="ddim"))
    assert repr(steps[0]) == "Step(1 of 2)"
    assert repr(steps[-1].result()) == "Result(1 images, seeds (1,))"
    assert repr(pipe).startswith("Pipeline('tiny' ")
    for call in (pipe, pipe.stream):
        with pytest.raises(ArgumentError, match="no argument 'steps'; use num_inference_steps"):
            call("a cat", **{"steps": 4})  # a name that type checkers refuse
        with pytest.raises(ArgumentError, match=r"no argument 'guidance_scal'; did you mean guidance_scale\?"):
            call("a cat", **{"guidance_scal": 4})
        with pytest.raises(ArgumentError, match="no argument 'zzz'; choose from prompt, negative_prompt, num"):
            call("a cat", **{"zzz": 4})


def test_one_signature() -> None:
    """Completion, help() and type checkers see every argument, in calls and streams alike."""
    called, streamed = (inspect.signature(f) for f in (edgediff.Pipeline.__call__, edgediff.Pipeline.stream))
    assert list(called.parameters) == ["self", *NAMES]
    assert called.parameters == streamed.parameters
    assert called.parameters["prompt"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert called.parameters["sampler"].kind is inspect.Parameter.KEYWORD_ONLY
    for method in (edgediff.Pipeline.__call__, edgediff.Pipeline.stream):
        for name in NAMES:
            assert re.search(rf"^ {{12}}(\w+, )*{name}(, \w+)*: ", method.__doc__ or "", re.MULTILINE), name
    assert get_args(SamplerName) == tuple(edgediff.SAMPLERS)


def test_a_pipeline_shows_what_is_the_users(pipe: edgediff.Pipeline) -> None:
    assert [name for name in dir(pipe) if not name.startswith("_")] == [
        *("build", "build_engines", "bundle", "close", "device", "engine", "isolation", "load_textual_inversion"),
        *("set_engine", "stream", "unload_textual_inversion", "warm"),
    ]
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(edgediff.CopyError, match="cannot be copied or pickled") as caught:
            copied(pipe)
        assert isinstance(caught.value, TypeError)  # what programs that try to pickle things catch


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("generator", "use seed"),
        ("cfg_scale", "use guidance_scale"),
        ("sampler_name", "use sampler"),
        ("n_iter", "use num_images_per_prompt"),
        ("strength", "this version starts from noise alone"),
        ("init_images", "this version starts from noise alone"),
        ("callback_on_step_end", r"loop over pipe\.stream\(\.\.\.\)"),
        ("prompt_embeds", "give the text as prompt"),
        ("cross_attention_kwargs", "edgediff export MODEL OUT --lora FILE:WEIGHT"),
        ("return_dict", "the call gives a Result"),
        ("denoising_end", "from its first step to its last"),
        ("enable_hr", "give height and width"),
        ("device", r'edgediff\.load\(\.\.\., device="cuda"\)'),
    ],
)
def test_arguments_of_diffusers_and_a1111_name_our_way(pipe: edgediff.Pipeline, name: str, hint: str) -> None:
    for call in (pipe, pipe.stream):
        with pytest.raises(ArgumentError, match=f"no argument '{name}'; .*{hint}"):
            call("a cat", **{name: 1})


def test_every_argument_of_diffusers_is_ours_or_has_a_hint(diffusers: Any) -> None:
    from edgediff.generation.elsewhere import ARGUMENTS

    pipelines = ("StableDiffusion", "StableDiffusionXL", "StableDiffusionImg2Img", "StableDiffusionXLInpaint")
    for name in (*pipelines, "StableDiffusionControlNet", "LatentConsistencyModel"):
        taken = inspect.signature(getattr(diffusers, f"{name}Pipeline").__call__).parameters
        assert set(taken) - {"self", "kwargs"} - set(NAMES) - set(ARGUMENTS) == set(), name
    assert not set(ARGUMENTS) & set(NAMES)


def test_what_hints_name_is_there(tiny_bundle: Path) -> None:
    """Arguments, methods and options that a hint points at."""
    from edgediff.generation.elsewhere import ARGUMENTS, ATTRIBUTES, SETTERS

    said = " ".join([*ARGUMENTS.values(), *ATTRIBUTES.values(), *SETTERS.values()])
    for name in re.findall(r"\bpipe\.(\w+)", said):
        assert hasattr(edgediff.Pipeline, name) or name in edgediff.Pipeline.__slots__, name
    for name in re.findall(r"\bedgediff\.(\w+)", said):
        assert hasattr(edgediff, name), name
    for name in re.findall(r"\buse (\w+)", said):
        assert name in NAMES or name in ("edgediff", "pipe"), name
    for name in re.findall(r"[( ](\w+)=", said):
        assert name in (*NAMES, "device"), name


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("scheduler", 'pipe(..., sampler="dpmpp_2m"'),
        ("to", 'edgediff.load(..., device="cuda")'),
        ("enable_model_cpu_offload", "parts open when a call needs them"),
        ("unet", 'pipe.engine("unet")'),
        ("load_lora_weights", "edgediff export MODEL OUT --lora"),
        ("set_progress_bar_config", "nothing is drawn"),
        ("_interrupt", "leave the loop over pipe.stream(...)"),
        ("strem", "did you mean stream?"),
        ("frobnicate", "choose from build, build_engines, bundle"),
    ],
)
def test_attributes_that_a_pipeline_does_not_have(pipe: edgediff.Pipeline, name: str, hint: str) -> None:
    assert not hasattr(pipe, name)
    for use in (lambda: getattr(pipe, name), lambda: setattr(pipe, name, 1)):
        with pytest.raises(edgediff.MissingAttributeError) as caught:
            use()
        assert isinstance(caught.value, AttributeError)
        assert str(caught.value).startswith(f"a pipeline has no {name!r}; ")
        assert hint in str(caught.value)


def test_attributes_that_cannot_be_set(pipe: edgediff.Pipeline) -> None:
    before = pipe.bundle
    for name, hint in (
        ("device", "device="),
        ("engine", r"pipe\.set_engine"),
        ("bundle", "load"),
        ("warm", "only be read"),
    ):
        with pytest.raises(edgediff.MissingAttributeError, match=rf"{name} of a pipeline cannot be set; .*{hint}"):
            setattr(pipe, name, 1)
    assert pipe.bundle is before
    pipe("a cat", num_inference_steps=1)


def test_one_argument_has_no_name(pipe: edgediff.Pipeline) -> None:
    with pytest.raises(ArgumentError, match="2 arguments have no name; only the prompt goes without one"):
        pipe("a cat", "a dog")


def test_scalars_of_numpy_are_defaults_too(pipe: edgediff.Pipeline) -> None:
    zeros = {"clip_skip": np.int64(0), "guidance_rescale": np.float32(0)}
    texts = [pipe("a cat", seed=1, num_inference_steps=1, **more).parameters for more in ({}, zeros)]
    assert texts[0] == texts[1]


def test_array(pipe: edgediff.Pipeline) -> None:
    arguments: dict[str, Any] = {"prompt": "a cat", "seed": 1, "num_inference_steps": 1}
    result = pipe(**arguments, output_type="np")
    assert result.array is result.images
    assert (result.array.dtype, result.array.shape) == (np.uint8, (1, 32, 32, 3))
    latents = pipe(**arguments, output_type="latent")
    assert latents.array is latents.latents
    with pytest.raises(ArgumentError, match="ask for output_type='np'"):
        pipe(**arguments).array  # noqa: B018


def test_a_warning_points_at_the_program(one_chunk: Path, tmp_path: Path) -> None:
    """A program whose folder's name begins like ours is not ours."""
    folder = tmp_path / "edgediff_app"
    folder.mkdir()
    program = folder / "core.py"
    program.write_text(
        f"import edgediff\nedgediff.load({str(one_chunk)!r})('cat ' * 80, num_inference_steps=1)\n",
        encoding="utf-8",
    )
    run = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True)
    assert f"{program}:2: PromptWarning: the prompt is longer" in run.stderr


@pytest.mark.parametrize("prompt", [[], [3], None, 7, "a\udcff"])
def test_bad_prompts(pipe: edgediff.Pipeline, prompt: Any) -> None:
    with pytest.raises(PromptError):
        pipe.stream(prompt)


def test_negative_prompts_must_match(pipe: edgediff.Pipeline) -> None:
    with pytest.raises(PromptError, match="1 prompts need as many negative prompts"):
        pipe.stream("a cat", negative_prompt=["a", "b"])
    with pytest.raises(PromptError, match="the negative prompt is 3"):
        pipe.stream("a cat", negative_prompt=3)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="not UTF-8"):
        pipe.stream("a cat", negative_prompt="\udcff")


def test_long_prompt_warns_with_the_words_that_were_cut(one_chunk: Path) -> None:
    pipe = edgediff.load(one_chunk, threads=1)
    kept, lost = "cat " * 75, "zebra, giraffe"
    with pytest.warns(PromptWarning, match=r"longer than the 75 tokens .* cut: 'zebra, giraffe'"):
        cut = pipe(kept + lost, num_inference_steps=1, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = pipe(kept, num_inference_steps=1, seed=0)
    np.testing.assert_array_equal(cut.latents, whole.latents)
    with pytest.warns(PromptWarning, match="the negative prompt is longer") as caught:
        pipe.stream("a cat", negative_prompt=kept + lost)  # before any step
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.stream("a cat", negative_prompt=kept + lost, guidance_scale=1.0)  # not read, so not warned of


def test_overflow_in_the_sampler_is_named(tiny_bundle: Path) -> None:
    pipe = edgediff.load(tiny_bundle, threads=1)
    real = pipe.engine("unet")

    class Loud(Counting):
        def __call__(self, **inputs: Any) -> Any:
            return {k: np.full_like(v, -3e38) for k, v in real(**inputs).items()}

    pipe.set_engine("unet", Loud(real))
    start = np.full((1, 4, 8, 8), 3e38, np.float32)
    with pytest.raises(EngineError, match=r"sampler plms, step 1, gave \d+ of 256 values that are not finite"):
        pipe("a cat", guidance_scale=1000, num_inference_steps=1, latents=start, output_type="latent")


@pytest.mark.parametrize("part", ["text_encoder", "unet", "vae_decoder"])
def test_values_that_are_not_finite_name_the_part(tiny_bundle: Path, part: str) -> None:
    pipe = edgediff.load(tiny_bundle, threads=1)
    real = pipe.engine(part)

    class Broken(Counting):
        def __call__(self, **inputs: Any) -> Any:
            out = real(**inputs)
            next(iter(out.values())).flat[3] = np.nan
            return out

    pipe.set_engine(part, Broken(real))
    with pytest.raises(EngineError, match=rf"{part} gave 1 of \d+ values that are not finite"):
        pipe("a cat", num_inference_steps=1)


def test_engine_refusing_its_inputs_names_the_part(pipe: edgediff.Pipeline) -> None:
    with pytest.raises(EngineError, match=r"unet failed on sample float32\[1, 3, 8, 8\]"):
        pipe.engine("unet")(
            sample=np.zeros((1, 3, 8, 8), np.float32),
            timestep=np.zeros(1, np.float32),
            encoder_hidden_states=np.zeros((1, 77, 32), np.float32),
        )


def test_bad_load(tiny_bundle: Path) -> None:
    with pytest.raises(ArgumentError, match="no device 'tpu'; choose from cpu"):
        edgediff.load(tiny_bundle, device="tpu")
    for threads in (0, 257):
        with pytest.raises(ArgumentError, match=f"threads is {threads}"):
            edgediff.load(tiny_bundle, threads=threads)
    with pytest.raises(ArgumentError, match="path is 3"):
        edgediff.load(3)  # type: ignore[arg-type]


def test_without_an_engine_the_error_says_what_to_install(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"cpu extra \(edgediff\[cpu\]\)"):
        edgediff.load(tiny_bundle).engine("unet")


@pytest.mark.parametrize("writable", [True, False])
def test_no_telemetry(tiny_bundle: Path, tmp_path: Path, writable: bool) -> None:
    """ONNX Runtime's own would leave files in the home, or warn where it cannot."""
    home = tmp_path / "home"
    if writable:
        home.mkdir()
    code = (
        "import os, sys, edgediff; before = dict(os.environ);"
        "edgediff.load(sys.argv[1], threads=1)('a cat', num_inference_steps=1);"
        "assert dict(os.environ) == before"
    )
    kept = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY" and not k.startswith("XDG_")}
    place = str(home) if writable else "/proc/nowhere"
    run = subprocess.run(
        [sys.executable, "-c", code, str(tiny_bundle)],
        env=kept | {"HOME": place},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert not writable or list(home.iterdir()) == []


def test_the_library_is_silent(tiny_bundle: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(builtins, "print", lambda *a, **k: pytest.fail("printed"))
    edgediff.load(tiny_bundle)("a cat", num_inference_steps=1)
    assert capfd.readouterr() == ("", "")
