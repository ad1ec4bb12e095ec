"""Arguments of the public functions: of every type, near their bounds and far beyond them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from PIL import Image

import edgediff
from edgediff.sampling.guidance import METHODS
from edgediff.sampling.rng import GENERATORS
from edgediff.sampling.schedule import BETAS, PREDICTIONS, SPACINGS

from .bundles import DATA
from .children import Report, judged
from .strange import strange

# What each argument may well be; one draws from these and from strange values.
SOUND: dict[str, Mapping[str, tuple[Any, ...]]] = {
    "pipe": {
        "prompt": ("a red apple", "", ["a", "b"], "(a:1.3) BREAK b", "a " * 300, "[a:b:0.5]", "((", "\\("),
        "negative_prompt": ("blue", "", None, ["c", "d"]),
        "num_inference_steps": (1, 2, 3, np.int64(2)),
        "guidance_scale": (1.0, 7.5, [3.0, 2.0], 0, 100),
        "height": (32, 64, 36),
        "width": (32, 64, 16),
        "num_images_per_prompt": (1, 2),
        "seed": (0, 7, 2**64 - 1, [1, 2], None, np.array(3)),
        "sampler": (*edgediff.SAMPLERS, "DPM++ 2M Karras", "EulerDiscreteScheduler"),
        "spacing": (*SPACINGS, None),
        "eta": (0.0, 1.0, None),
        "guidance": (*METHODS, edgediff.Apg()),
        "guidance_interval": ((0.2, 0.8), (0, 1), None),
        "guidance_rescale": (0.0, 0.7, 1),
        "dynamic_thresholding_ratio": (0.9, None, 1.0),
        "clip_skip": (0, 1, 2),
        "negative_clip_skip": (0, 1),
        "original_size": ((32, 32), None),
        "crops_coords_top_left": ((0, 0), None),
        "target_size": ((32, 32), None),
        "aesthetic_score": (6.0, None),
        "negative_aesthetic_score": (2.5, None),
        "rng": tuple(GENERATORS),
        "timesteps": ([900, 500, 1], None),
        "sigmas": ([10.0, 1.0, 0.0], None),
        "prompt_syntax": ("a1111", "plain"),
        "on_x0": (None, lambda x: x, lambda x: x[:0], lambda x: None, lambda x: x * np.nan),
        "image": (None, Image.new("RGB", (8, 8))),
        "mask_image": (None, Image.new("L", (8, 8))),
        "latents": (None, np.zeros((1, 4, 8, 8), np.float32)),
        "output_type": ("pil", "np", "latent"),
        "deadline": (None, 5, 0.001),
    },
    "plan": {
        "schedule": (edgediff.Schedule(), edgediff.Schedule(prediction_type="v_prediction")),
        "sampler": edgediff.SAMPLERS,
        "steps": (1, 5, 20, 1000),
        "guidance_scale": (1.0, 7.5, [3.0] * 5),
        "spacing": (*SPACINGS, None),
        "eta": (0.0, 1.0, None),
        "guidance": METHODS,
        "guidance_interval": ((0.2, 0.8), None),
        "timesteps": ([900, 500, 1], None),
        "sigmas": ([10.0, 1.0, 0.0], None),
    },
    "Schedule": {
        "num_train_timesteps": (1000, 10, 1),
        "beta_start": (0.00085, 1e-4),
        "beta_end": (0.012, 0.02),
        "beta_schedule": tuple(BETAS),
        "prediction_type": PREDICTIONS,
        "timestep_spacing": SPACINGS,
        "steps_offset": (0, 1),
        "set_alpha_to_one": (True, False),
        "rescale_betas_zero_snr": (True, False),
        "shift": (1.0, 3.0),
        "use_karras_sigmas": (True, False),
        "original_inference_steps": (50,),
        "timestep_scaling": (10.0,),
    },
    "load": {
        "path": (DATA / "tiny", str(DATA / "tiny"), DATA, None),
        "device": ("cpu", "cuda", "cuda:7"),
        "engine": (None, "onnx", "tensorrt", "auto"),
        "threads": (1, 2, None),
        "providers": (None, ["CPUExecutionProvider"], [("CPUExecutionProvider", {})]),
        "engine_cache": (None, DATA / "cache"),
        "build_options": (None,),
        "release_parts": (True, False),
        "memory_limit": (None, 10**6, 2 * 10**9),
        "isolated": (False,),
    },
    "save": {
        "image": (
            Image.new("RGB", (8, 8)),
            Image.new("RGBA", (8, 8)),
            Image.new("F", (8, 8)),
            Image.new("RGB", (0, 0)),
        ),
        "path": ("out.png", "out.webp", Path("out.jpg"), "out.bmp", ".", "/nowhere/out.png", "x" * 300 + ".png"),
        "parameters": ("red\nSteps: 3", "", "\ud800", "é" * 40_000, 5, b"x", None),
    },
    "Apg": {"momentum": (-0.5, 0.0), "eta": (0.0, 1.0), "norm_threshold": (2.5, 0.0)},
    "preview": {"how": ("matrix", "decoder", None)},
    "engine": {
        "part": ("unet", "vae_decoder", "text_encoder"),
        "engine": (lambda **inputs: {}, lambda **inputs: None),
    },
    "embedding": {"path": (DATA / "tiny" / "golden.safetensors", DATA, "/dev/zero"), "token": ("a", None)},
}
ALWAYS = {
    "pipe": {"prompt": "a red apple", "num_inference_steps": 1, "seed": 1, "deadline": 8},
    "load": {"path": DATA / "tiny"},
    "save": {"image": Image.new("RGB", (8, 8)), "path": "out.png"},
    "embedding": {"path": "x"},
    "engine": {"part": "unet", "engine": lambda **inputs: {}},
    "plan": {"schedule": edgediff.Schedule(), "sampler": "ddim", "steps": 5},
}


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A function's name and its arguments: some sound, one or two strange."""
    name = draw(st.sampled_from(("pipe", "pipe", "pipe", "plan", "plan", *SOUND)))
    values = dict(ALWAYS.get(name, {}))
    for argument in draw(st.lists(st.sampled_from(sorted(SOUND[name])), max_size=4, unique=True)):
        values[argument] = draw(st.sampled_from(SOUND[name][argument]))
    for argument in draw(st.lists(st.sampled_from(sorted(SOUND[name])), max_size=2, unique=True)):
        values[argument] = draw(strange)
    return name, values


def call(name: str, values: dict[str, Any], pipe: edgediff.Pipeline) -> None:
    """Make the call. ``Pipeline.set_engine`` is tried on a pipeline of its own, whose next call it breaks."""
    if name == "pipe":
        pipe(**values)
    elif name == "load":
        with edgediff.load(**values):
            pass
    elif name == "save":
        image = values["image"]
        if "parameters" in values and isinstance(image, Image.Image):
            image.info["parameters"] = values.pop("parameters")
        values.pop("parameters", None)
        edgediff.save(**values)
    elif name == "preview":
        for step in pipe.stream("a", num_inference_steps=1, seed=1):
            step.preview(**values)
    elif name == "engine":
        if callable(values["engine"]) and values["engine"] not in SOUND["engine"]["engine"]:
            return  # what a caller's own function raises is the caller's
        other = edgediff.load(DATA / "tiny", threads=1)
        other.set_engine(values["part"], values["engine"])
        other("a", num_inference_steps=1, seed=1)
    elif name == "embedding":
        pipe.load_textual_inversion(**values)
    else:
        getattr(edgediff, name)(**values)


def described(name: str, values: dict[str, Any]) -> str:
    shown = []
    for key, value in values.items():
        try:
            text = repr(value)
        except Exception:
            text = type(value).__name__
        shown.append(f"{key}={text[:120]}")
    return f"{name}({', '.join(shown)})"[:600]


class Arguments:
    name = "arguments"
    at_once = 250

    def prepare(self, work: Path) -> None:
        """Nothing is needed."""

    def roots(self, work: Path) -> list[Path]:
        return [Path("/")]  # the caller names the paths

    def run(self, numbers: range, seed: int, folder: Path, report: Report) -> None:
        os.chdir(folder)
        set_hypothesis_home_dir(folder)
        pipe = edgediff.load(DATA / "tiny", threads=1)
        examples(lambda name, values: report(judged(described(name, values), lambda: call(name, values, pipe))),
                 calls().map(lambda c: (c[0], dict(c[1]))), numbers, seed)  # fmt: skip


def examples(do: Any, strategy: st.SearchStrategy[tuple[Any, ...]], numbers: range, base: int) -> None:
    """Call ``do`` with as many draws of a strategy; the numbers alone decide which."""
    left = len(numbers)

    @seed(1_000_003 * base + numbers.start)
    @settings(
        max_examples=len(numbers),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(drawn: tuple[Any, ...]) -> None:
        nonlocal left
        left -= 1
        do(*drawn)

    each()
    assert left <= 0, f"{left} of {len(numbers)} cases were not drawn"


KIND = Arguments()
