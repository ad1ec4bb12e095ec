"""Whole calls of every family of models against diffusers' own pipelines with the same weights."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler
from PIL import Image
from safetensors.numpy import save_file

import edgediff
from edgediff.bundle.scheduler_config import as_run, schedule_of
from edgediff.generation.autoencoder import Autoencoder
from edgediff.generation.conditioning import embed_guidance
from edgediff.sampling.names import from_config
from edgediff_export.convert import export

from ..bundle.test_reading import edit
from ..support.families import FACTOR, FAMILIES, LATENT, SIDE, tiny_vae
from ..support.reference import open_reference

PROMPT, NEGATIVE = "a red apple on a blue background", "a green pear"
PIXELS = SIDE * FACTOR
TOLERANCE = 1e-4  # relative to the largest value
UNGUIDED = {"guidance_scale": 1.0}

Found = tuple[Any, edgediff.Pipeline]


@pytest.fixture(scope="module")
def both(family_bundle: Callable[[str], Path]) -> Callable[[str], Found]:
    """(diffusers' pipeline, ours) of a family, made when it is first asked for."""

    @functools.cache
    def find(name: str) -> Found:
        root = family_bundle(name)
        source = root.parent / "source"
        theirs = open_reference(source, **({"vae": None} if name == "pixel-text" else {}))
        return theirs, edgediff.load(root, threads=1)

    return find


def picture(mode: str = "RGB", seed: int = 0, side: int = PIXELS) -> Image.Image:
    """Smooth colours; a mask (L) has every grey."""
    shape = (5, 5, 3) if mode == "RGB" else (5, 5)
    coarse = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def compare(pair: Found, mine: dict[str, Any], their: dict[str, Any] | None = None) -> float:
    """Largest difference of latents after 4 steps, relative to the largest value."""
    theirs, ours = pair
    common = {"prompt": PROMPT, "num_inference_steps": 4}
    arguments = {**common, **(mine if their is None else their)}
    expected = theirs(generator=torch.Generator().manual_seed(3), output_type="latent", **arguments).images
    return difference(ours(seed=3, output_type="latent", **{**common, **mine}).latents, expected.detach().numpy())


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


SIZES = {"original_size": (40, 64), "crops_coords_top_left": (3, 5), "target_size": (24, 48)}


@pytest.mark.parametrize(
    ("family", "arguments"),
    [
        ("sd15", {"guidance_scale": 5.0}),
        ("sd21", {"guidance_scale": 5.0, "negative_prompt": NEGATIVE}),
        ("sd-turbo", UNGUIDED),
        ("sd-turbo", {**UNGUIDED, "num_inference_steps": 1}),
        ("taesd", {"guidance_scale": 5.0}),
        ("lcm", {"guidance_scale": 8.5}),
        ("lcm", {"guidance_scale": 2.0, "num_inference_steps": 2}),
        ("sdxl", {"guidance_scale": 5.0}),
        ("sdxl", {"guidance_scale": 5.0, "negative_prompt": ""}),
        ("sdxl", {"guidance_scale": 5.0, "negative_prompt": NEGATIVE}),
        ("sdxl", UNGUIDED),
        ("sdxl", SIZES),
        ("sdxl", {"height": 24, "width": 40}),
        ("sdxl-turbo", {**UNGUIDED, "num_inference_steps": 1}),
        ("sdxl-turbo", UNGUIDED),
        ("sdxl-lcm", {"guidance_scale": 8.5}),
    ],
)
def test_latents(both: Callable[[str], Found], family: str, arguments: dict[str, Any]) -> None:
    assert compare(both(family), arguments) < TOLERANCE


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sdxl-refiner", "sdxl-turbo", "lcm", "pixel-text"])
def test_the_prompt_matters(both: Callable[[str], Found], family: str) -> None:
    """Otherwise nothing here would show a wrong text encoding."""
    ours = both(family)[1]
    latents = [ours(p, seed=3, num_inference_steps=4, output_type="latent").latents for p in (PROMPT, NEGATIVE)]
    assert difference(*latents) > 100 * TOLERANCE


def test_what_sdxl_is_told_matters(both: Callable[[str], Found]) -> None:
    ours = both("sdxl")[1]
    plain = ours(PROMPT, seed=3, num_inference_steps=4).latents
    for name, value in SIZES.items():
        assert difference(ours(PROMPT, seed=3, num_inference_steps=4, **{name: value}).latents, plain) > 10 * TOLERANCE
    spoken = ours(PROMPT, seed=3, num_inference_steps=4, negative_prompt="").latents
    assert difference(spoken, plain) > 10 * TOLERANCE


@pytest.mark.parametrize("family", ["inpaint", "sdxl-inpaint"])
@pytest.mark.parametrize("side", [PIXELS, 50])
def test_inpainting(both: Callable[[str], Found], family: str, side: int) -> None:
    """Pictures of another size are scaled; the noise is drawn in diffusers' order."""
    given = {"image": picture(side=side), "mask_image": picture("L", 1, side)}
    size = {"width": PIXELS, "height": PIXELS}
    pair = both(family)
    mine = {"guidance_scale": 5.0, **given, **size}
    assert compare(pair, mine, {**mine, "strength": 1.0}) < TOLERANCE
    arrays = {name: np.asarray(image) for name, image in given.items()}
    assert compare(pair, {**mine, **arrays}, {**mine, "strength": 1.0}) < TOLERANCE


def test_inpainting_of_several_pictures(both: Callable[[str], Found]) -> None:
    """Every picture of a batch is the one that its seed alone gives."""
    ours = both("inpaint")[1]
    given: dict[str, Any] = {"image": picture(), "mask_image": picture("L", 1), "num_inference_steps": 2}
    batch = ours(PROMPT, seed=[3, 9], num_images_per_prompt=2, **given).latents
    for k, seed in enumerate((3, 9)):
        np.testing.assert_allclose(batch[k], ours(PROMPT, seed=seed, **given).latents[0], atol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"guidance_scale": 5.0},
        {"aesthetic_score": 7.5, "negative_aesthetic_score": 1.0, "negative_prompt": NEGATIVE},
        {"original_size": (40, 64), "crops_coords_top_left": (3, 5)},
    ],
)
def test_refiner(both: Callable[[str], Found], arguments: dict[str, Any]) -> None:
    """diffusers' refiner starts from a picture with noise: here latents of zeros at full strength."""
    theirs, ours = both("sdxl-refiner")
    theirs.scheduler.set_timesteps(4)
    sigma = float(theirs.scheduler.sigmas[0])
    noise = torch.randn((1, LATENT, SIDE, SIDE), generator=torch.Generator().manual_seed(3))
    start = {"latents": noise.numpy() * np.float32(sigma / np.sqrt(1 + sigma**2))}
    zeros = {"image": torch.zeros(1, LATENT, SIDE, SIDE), "strength": 1.0}
    sizes = {"original_size": (PIXELS, PIXELS), "target_size": (PIXELS, PIXELS)}
    assert compare((theirs, ours), {**arguments, **start}, {**sizes, **arguments, **zeros}) < TOLERANCE
    told = {"aesthetic_score": 1.0}
    plain, other = (ours(PROMPT, seed=3, num_inference_steps=4, **more).latents for more in ({}, told))
    assert difference(plain, other) > 10 * TOLERANCE


def test_text_to_pixels(both: Callable[[str], Found]) -> None:
    theirs, ours = both("pixel-text")
    mine = {"guidance_scale": 5.0, "negative_prompt": NEGATIVE}
    # Without an autoencoder diffusers takes a cell to be 8 pixels.
    side = {"height": 8 * SIDE, "width": 8 * SIDE}
    assert compare((theirs, ours), mine, {**mine, **side}) < TOLERANCE
    result = ours(PROMPT, seed=3, num_inference_steps=4, output_type="np")
    np.testing.assert_array_equal(
        result.images[0], np.rint((result.latents[0] + 1) * 127.5).clip(0, 255).transpose(1, 2, 0)
    )


def test_guided_pixels_are_clipped(both: Callable[[str], Found], tmp_path: Path) -> None:
    """The guided estimate is what is clipped; diffusers' Stable Diffusion pipeline refuses to, so its parts by hand."""
    theirs, ours = both("pixel-text")
    root = shutil.copytree(ours.bundle.root, tmp_path / "bundle")
    clipping = edgediff.load(edit(root, lambda data: data.update(clip_sample=0.8)), threads=1)
    arguments: dict[str, Any] = {"seed": 3, "num_inference_steps": 4, "guidance_scale": 5.0}
    found = clipping(PROMPT, **arguments).latents
    scheduler = DDIMScheduler.from_config(theirs.scheduler.config, clip_sample=True, clip_sample_range=0.8)
    scheduler.set_timesteps(4)
    x = torch.randn((1, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        texts = torch.cat([theirs.encode_prompt(text, "cpu", 1, False)[0] for text in ("", PROMPT)])
        for t in scheduler.timesteps:
            u, c = theirs.unet(torch.cat([x, x]), t, texts).sample.chunk(2)
            x = scheduler.step(u + 5.0 * (c - u), t, x, use_clipped_model_output=True).prev_sample
    assert difference(found, x.numpy()) < TOLERANCE
    assert difference(ours(PROMPT, **arguments).latents, x.numpy()) > 100 * TOLERANCE


@pytest.mark.parametrize(("family", "sampler"), [("pixel", "ddpm"), ("pixel-ddim", "ddim")])
def test_pixels_without_text(both: Callable[[str], Found], family: str, sampler: str) -> None:
    """Both schedulers clip the estimate of x0 at every step. The noise estimate follows, which DDIM's does in diffusers
    when it is asked to.
    """
    theirs, ours = both(family)
    more = {"use_clipped_model_output": True} if family == "pixel-ddim" else {}
    expected = theirs(
        generator=torch.Generator().manual_seed(3), num_inference_steps=4, output_type="np", **more
    ).images
    result = ours(seed=3, num_inference_steps=4, sampler=sampler)
    found = (result.latents / 2 + 0.5).clip(0, 1).transpose(0, 2, 3, 1)
    assert difference(found, expected) < TOLERANCE
    assert ours.bundle.clip_sample == 1.0
    for step in ours.stream(seed=3, num_inference_steps=4, sampler=sampler):
        assert np.abs(step.x0).max() <= 1 + 1e-5
        assert np.asarray(step.preview()[0]).shape == (SIDE, SIDE, 3)


@pytest.mark.parametrize("family", ["sdxl", "sd21"])
def test_clip_skip(both: Callable[[str], Found], family: str) -> None:
    """Of the prompt alone, as in diffusers; for the negative prompt, diffusers encodes it as a prompt of its own."""
    pair = theirs, ours = both(family)
    assert ours.bundle.clip_skips
    mine = {"guidance_scale": 5.0, "negative_prompt": NEGATIVE}
    for skip in ours.bundle.clip_skips:
        assert compare(pair, {"clip_skip": skip, **UNGUIDED}) < TOLERANCE
        assert compare(pair, {"clip_skip": skip, **mine}) < TOLERANCE
    with torch.no_grad():
        one, other = (
            theirs.encode_prompt(
                text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False, clip_skip=1
            )
            for text in (PROMPT, NEGATIVE)
        )
    given = {"prompt": None, "prompt_embeds": one[0], "negative_prompt_embeds": other[0], "guidance_scale": 5.0}
    if family == "sdxl":
        given |= {"pooled_prompt_embeds": one[2], "negative_pooled_prompt_embeds": other[2]}
    assert compare(pair, {"clip_skip": 1, "negative_clip_skip": 1, **mine}, given) < TOLERANCE


@pytest.mark.parametrize("family", ["sdxl", "sd21", "lcm"])
@pytest.mark.parametrize("more", [UNGUIDED, {"guidance_scale": 5.0, "negative_prompt": NEGATIVE}])
def test_empty_prompt(both: Callable[[str], Found], family: str, more: dict[str, Any]) -> None:
    assert compare(both(family), {"prompt": "", **({"guidance_scale": 5.0} if family == "lcm" else more)}) < TOLERANCE


def test_long_prompts_of_two_text_encoders(both: Callable[[str], Found]) -> None:
    """Chunks side by side for both, the pooled state of the first."""
    theirs, ours = both("sdxl")
    parts = ["a red apple", "on a blue background"]
    with torch.no_grad():
        encoded = [theirs.encode_prompt(part, device="cpu", do_classifier_free_guidance=False) for part in parts]
    expected = {"prompt_embeds": torch.cat([e[0] for e in encoded], 1), "pooled_prompt_embeds": encoded[0][2]}
    assert (
        compare((theirs, ours), {"prompt": " BREAK ".join(parts), **UNGUIDED}, {**expected, **UNGUIDED, "prompt": None})
        < TOLERANCE
    )


@pytest.mark.parametrize("count", [1, 3])
def test_textual_inversion_of_two_text_encoders(both: Callable[[str], Found], tmp_path: Path, count: int) -> None:
    pair = both("sdxl")
    theirs, ours = pair
    random = np.random.default_rng(count)
    widths = [theirs.text_encoder.config.hidden_size, theirs.text_encoder_2.config.hidden_size]
    left, right = (random.standard_normal((count, width)).astype(np.float32) for width in widths)
    word = f"dotty{count}"
    save_file({"clip_g": right, "clip_l": left}, tmp_path / f"{word}.safetensors")
    for vectors, encoder, tokenizer in (
        (left, theirs.text_encoder, theirs.tokenizer),
        (right, theirs.text_encoder_2, theirs.tokenizer_2),
    ):
        theirs.load_textual_inversion(torch.from_numpy(vectors), token=word, text_encoder=encoder, tokenizer=tokenizer)
    prompt = f"a {word} apple, {word}"
    without = ours(prompt, seed=3, num_inference_steps=4).latents
    assert ours.load_textual_inversion(tmp_path / f"{word}.safetensors") == word
    assert compare(pair, {"prompt": prompt, "guidance_scale": 5.0}) < TOLERANCE
    assert difference(ours(prompt, seed=3, num_inference_steps=4).latents, without) > 10 * TOLERANCE
    ours.unload_textual_inversion(word)


@pytest.mark.parametrize("scale", [1.0, 2.5, 8.5])
@pytest.mark.parametrize("width", [32, 256, 33])
def test_guidance_embedding(scale: float, width: int) -> None:
    embed = diffusers.LatentConsistencyModelPipeline.get_guidance_scale_embedding
    expected = embed(None, torch.tensor([scale - 1]), width)[0].numpy()
    np.testing.assert_allclose(embed_guidance(scale, width), expected, atol=5e-4)  # sines of thousands, in float32


DEFAULTS = {
    "sd15": ("stable-diffusion", 20, 7.5, "ddim"),
    "sd21": ("stable-diffusion", 20, 7.5, "ddim"),
    "sd-turbo": ("stable-diffusion", 1, 1.0, "euler"),
    "lcm": ("stable-diffusion", 4, 8.5, "lcm"),
    "inpaint": ("stable-diffusion", 20, 7.5, "ddim"),
    "taesd": ("stable-diffusion", 20, 7.5, "ddim"),
    "sdxl": ("stable-diffusion-xl", 20, 5.0, "euler"),
    "sdxl-turbo": ("stable-diffusion-xl", 1, 1.0, "euler_a"),
    "sdxl-lcm": ("stable-diffusion-xl", 4, 8.5, "lcm"),
    "sdxl-inpaint": ("stable-diffusion-xl", 20, 5.0, "euler"),
    "sdxl-refiner": ("stable-diffusion-xl", 20, 5.0, "euler"),
    "pixel-text": ("pixel", 20, 7.5, "ddim"),
    "pixel": ("pixel", 50, 1.0, "ddpm"),
    "pixel-ddim": ("pixel", 50, 1.0, "ddim"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults(both: Callable[[str], Found], family: str) -> None:
    found = both(family)[1].bundle
    default = found.defaults
    kind, *rest = DEFAULTS[family]
    assert found.kind == kind
    assert [default.num_inference_steps, default.guidance_scale, default.sampler] == rest
    side = SIDE if kind == "pixel" else PIXELS
    assert (default.width, default.height) == (side, side)
    assert found.zero_negative == (family in ("sdxl", "sdxl-turbo", "sdxl-lcm", "sdxl-inpaint"))


CLIPPED = {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("TCDScheduler", {}),
        ("LCMScheduler", {"original_inference_steps": 100, "timestep_scaling": 5.0}),
        ("DPMSolverMultistepScheduler", {"timestep_spacing": "linspace", **CLIPPED}),
        ("DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}),
        ("DEISMultistepScheduler", {"lower_order_final": False}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("PNDMScheduler", {"timestep_spacing": "trailing", "skip_prk_steps": True}),
        ("DDIMScheduler", {"timestep_spacing": "linspace"}),
        ("DDPMParallelScheduler", {"clip_sample": False}),
    ],
)
def test_scheduler_of_a_folder(
    both: Callable[[str], Found], tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    """A folder with this scheduler, as the exporter reads it, drawn by defaults alone on both sides."""
    theirs, ours = both("sd15")
    kind = type(theirs)
    own = getattr(diffusers, name).from_config(theirs.scheduler.config, **settings)
    theirs = kind(**{**theirs.components, "scheduler": own}, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    config = as_run({**own.config, "_class_name": name}, kind.__name__, True)
    found = from_config(config)
    assert found is not None
    root = shutil.copytree(ours.bundle.root, tmp_path / "bundle")
    changed = {"schedule": schedule_of(config), "defaults": {**vars(ours.bundle.defaults), "sampler": found[0]}}
    ours = edgediff.load(edit(root, lambda data: data.update(changed)), threads=1)
    for steps in (3, 6):
        assert compare((theirs, ours), {"guidance_scale": 5.0, "num_inference_steps": steps}) < 3 * TOLERANCE


def test_preview_decoder(both: Callable[[str], Found], tmp_path: Path) -> None:
    """A tiny decoder beside the model's own; diffusers exchanges the one for the other in a pipeline."""
    theirs, plain = both("sd15")
    small = tiny_vae(8)
    small.save_pretrained(tmp_path / "small")
    root = export(plain_source(theirs), tmp_path / "bundle", precision="fp32", preview_decoder=tmp_path / "small")
    ours = edgediff.load(root, threads=1)
    for step in ours.stream(PROMPT, seed=3, num_inference_steps=2):
        pass
    with torch.no_grad():
        expected = small.decode(torch.from_numpy(step.x0) / small.config.scaling_factor).sample.numpy()
    shown, matrix = (np.asarray(step.preview(how)[0], np.float32) for how in ("decoder", "matrix"))
    expected = (expected[0].transpose(1, 2, 0) * 127.5 + 127.5).clip(0, 255)
    assert np.abs(shown - expected).max() <= 1
    assert np.abs(shown - np.asarray(step.preview()[0])).max() == 0
    assert np.abs(shown - matrix).max() > 10
    with pytest.raises(edgediff.ArgumentError, match="has no preview_decoder"):
        Autoencoder(plain._open_parts()).preview(step.x0, "decoder")
    with pytest.raises(edgediff.ArgumentError, match="no preview 'best'; choose from decoder, matrix"):
        step.preview("best")
    AutoencoderTiny(
        encoder_block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        num_encoder_blocks=(1,),
        num_decoder_blocks=(1,),
    ).save_pretrained(tmp_path / "other")
    with pytest.raises(
        edgediff.BundleError, match="reads 4 channels of 1 pixels a side, this model's latents have 4 of 2"
    ):
        export(plain_source(theirs), tmp_path / "no", preview_decoder=tmp_path / "other")


def plain_source(theirs: Any) -> Path:
    """The folder that a pipeline was read from."""
    return Path(theirs.config._name_or_path)


def test_pictures_of_a_tiny_autoencoder(both: Callable[[str], Found]) -> None:
    theirs, ours = both("taesd")
    result = ours(PROMPT, seed=3, num_inference_steps=4, output_type="np")
    with torch.no_grad():
        expected = theirs.vae.decode(torch.from_numpy(result.latents)).sample.numpy()
    np.testing.assert_allclose(Autoencoder(ours._open_parts()).decode(result.latents), expected, atol=1e-4)
    assert [t.name for t in ours.bundle.parts["vae_encoder"].outputs] == ["latent_mean"]


def test_refused(both: Callable[[str], Found]) -> None:
    sd, xl, refiner, lcm, inpaint, pixel = (
        both(name)[1] for name in ("sd15", "sdxl", "sdxl-refiner", "lcm", "inpaint", "pixel")
    )
    for pipe, arguments, said in (
        (sd, {"image": picture()}, "image was given, and bundle 'source' is no inpainting model"),
        (sd, {"original_size": (8, 8)}, "original_size is"),
        (xl, {"target_size": (8, 0)}, r"target_size is \(8, 0\); it must be \(height, width\)"),
        (xl, {"aesthetic_score": 6.0}, "aesthetic_score is 6.0; the U-Net"),
        (refiner, {"target_size": (8, 8)}, "target_size is"),
        (refiner, {"aesthetic_score": 11}, "aesthetic_score is 11; it must be a number, 0 .. 10"),
        (lcm, {"guidance_scale": [1.0, 2.0]}, "takes one number"),
        (inpaint, {}, "is an inpainting model: image is missing"),
        (inpaint, {"image": picture()}, "mask_image is missing"),
        (inpaint, {"image": 3, "mask_image": picture()}, "image is int"),
        (inpaint, {"image": "nowhere.png", "mask_image": picture()}, "image cannot be read as a picture"),
    ):
        with pytest.raises(edgediff.ArgumentError, match=said):
            pipe.stream(PROMPT, **arguments)
    with pytest.raises(edgediff.PromptError, match="takes no prompt"):
        pixel.stream(PROMPT)
    with pytest.raises(
        edgediff.ArgumentError, match=r"guidance_scale is 5\.0; bundle 'source' takes no prompt to guide"
    ):
        pixel.stream(guidance_scale=5.0)
    with pytest.raises(edgediff.PromptError, match="no prompt was given"):
        both("sdxl")[1].stream()


def test_parameters_carry_what_was_given(both: Callable[[str], Found]) -> None:
    plain, given = (
        both("sdxl")[1](PROMPT, seed=3, num_inference_steps=1, **more).images[0].info["parameters"]
        for more in ({}, SIZES)
    )
    assert "Original size: 64x40, Crop: 3 5, Target size: 48x24" in given
    assert "Original size" not in plain
