"""Calls, streams and bad arguments, on a tiny model with random weights; pictures are judged in test_quality."""

from __future__ import annotations

import builtins
import math
import os
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgediff
from edgediff import ArgumentError, EngineError, PromptError, PromptWarning


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
    pipe._engines[part] = engine
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
    assert "Steps: 2, Sampler: DDIM, Schedule type: leading, CFG scale: 7.5, Seed: 5, Size: 32x32" in text


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
    pipe("a cat", num_inference_steps=3)
    assert unet.batches == [2, 2, 2]
    unet.batches.clear()
    pipe("a cat", num_inference_steps=3, guidance_scale=1.0)
    assert unet.batches == [1, 1, 1]


def test_leaving_the_loop_cancels(tiny_bundle: Path) -> None:
    pipe, unet = counted(tiny_bundle, "unet")
    for step in pipe.stream("a cat", num_inference_steps=50):
        if step.index == 1:
            break
    assert len(unet.batches) == 2


def test_stream(pipe: edgediff.Pipeline) -> None:
    steps = list(pipe.stream("a cat", num_inference_steps=3, seed=1, num_images_per_prompt=2))
    assert [(s.index, s.total, s.last) for s in steps] == [(0, 3, False), (1, 3, False), (2, 3, True)]
    assert [p.size for p in steps[0].preview()] == [(32, 32)] * 2
    assert [p.size for p in steps[0].decode()] == [(32, 32)] * 2
    with pytest.raises(ArgumentError, match="step 1 of 3 is not the last"):
        steps[0].result()
    whole = pipe("a cat", num_inference_steps=3, seed=1, num_images_per_prompt=2)
    np.testing.assert_array_equal(steps[-1].result().latents, whole.latents)


def test_starting_latents_and_outputs(pipe: edgediff.Pipeline) -> None:
    start = edgediff.rng.TorchCpuGenerator(3).randn((1, 4, 8, 8))
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
        ({"guidance_scale": 1e30}, "guidance_scale is 1e\\+30; it must be finite, at most 1000"),
        ({"height": 30}, "height is 30; it must be a multiple of 8: try 24 or 32"),
        ({"width": 0}, "width is 0"),
        ({"width": 3}, "try 8"),
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
        ({"latents": "abc"}, "latents have shape str"),
        ({"latents": np.full((1, 4, 8, 8), np.nan)}, "latents hold values that are not finite"),
        ({"output_type": "jpeg"}, "no output_type 'jpeg'; choose from pil, np, latent"),
        ({"latents": np.zeros((1, 4, 4, 4))}, r"latents have shape \(1, 4, 4, 4\); this call needs \(1, 4, 8, 8\)"),
    ],
)
def test_bad_arguments_before_any_work(tiny_bundle: Path, arguments: dict[str, Any], message: str) -> None:
    pipe = edgediff.load(tiny_bundle)
    with pytest.raises(ArgumentError, match=message):
        pipe.stream("a cat", **arguments)  # not even started
    assert pipe._engines == {}


@pytest.mark.parametrize("prompt", ["", "  \n", [], ["a cat", ""], [3], None, 7, "a\udcff"])
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


def test_long_prompt_warns_with_the_words_that_were_cut(pipe: edgediff.Pipeline) -> None:
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

    pipe._engines["unet"] = Loud(real)
    start = np.full((1, 4, 8, 8), 3e38, np.float32)
    with pytest.raises(EngineError, match=r"sampler ddim, step 1, gave \d+ of 256 values that are not finite"):
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

    pipe._engines[part] = Broken(real)
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
