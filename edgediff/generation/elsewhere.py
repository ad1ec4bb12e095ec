"""What diffusers, A1111 and others call what has another name here, or none: an error names the way on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NoReturn

from ..errors import ArgumentError, MissingAttributeError, choices, shown
from .arguments import NAMES

STREAM = "loop over pipe.stream(...), whose steps come as they are made"
NO_START = "this version starts from noise alone; image and mask_image are for inpainting models"
NO_CONTROL = "this version runs no ControlNet"
NO_ADAPTER = "this version runs no IP-Adapter"
NO_UPSCALING = "this version makes pictures in one pass; give height and width"
NO_SPLIT = "this version runs a model from its first step to its last"
TEXT_ALONE = "give the text as prompt; (word:1.3) weighs a word"
LORA = "a LoRA is merged at export: edgediff export MODEL OUT --lora FILE:WEIGHT"
ENGINE = 'pipe.engine("unet") and the like are the parts, pipe.set_engine(...) runs another'
MEMORY = "leave it out: parts open when a call needs them"
DEVICE = 'choose it at the start: edgediff.load(..., device="cuda")'
PRECISION = "it is chosen at export: edgediff export MODEL OUT --precision P"
PICTURES = "leave it out: the call gives a Result, with images, seeds and latents"


def _each(names: str, hint: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), hint)


# Arguments of diffusers' pipelines, of A1111's API and of other programs.
ARGUMENTS: dict[str, str] = {
    "generator": "use seed, the number that it was seeded with",
    "negative": "use negative_prompt",
    "use_karras_sigmas": 'use sampler="DPM++ 2M Karras", or spacing="karras"',
    "mask": "use mask_image",
    "masked_image_latents": "use image and mask_image",
    "CLIP_stop_at_last_layers": "use clip_skip, which counts one less",
    "original_inference_steps": "use timesteps, which names each one",
    "prompt_embeds": TEXT_ALONE,
    "styles": "write them into prompt",
    "size": "use height and width",
    "safety_checker": "leave it out: pictures are not checked",
    **_each("steps num_steps inference_steps", "use num_inference_steps"),
    **_each("cfg_scale cfg guidance_strength", "use guidance_scale"),
    **_each("scheduler sampler_name sampler_index", "use sampler"),
    **_each("num_images batch_size n_iter num_samples n", "use num_images_per_prompt"),
    **_each("callback callback_steps callback_on_step_end callback_on_step_end_tensor_inputs", STREAM),
    **_each("strength denoising_strength init_image init_images", NO_START),
    **_each("prompt_2 negative_prompt_2", "leave it out: both text encoders read prompt and negative_prompt"),
    **_each("negative_prompt_embeds pooled_prompt_embeds negative_pooled_prompt_embeds", TEXT_ALONE),
    **_each("cross_attention_kwargs lora_scale", LORA),
    **_each("return_dict send_images", PICTURES),
    **_each("save_images do_not_save_samples do_not_save_grid", "use edgediff.save(image, path) on what comes back"),
    **_each("denoising_start denoising_end refiner_checkpoint refiner_switch_at", NO_SPLIT),
    **_each(
        "negative_original_size negative_crops_coords_top_left negative_target_size",
        "leave it out: the negative prompt has the sizes of the prompt",
    ),
    **_each("ip_adapter_image ip_adapter_image_embeds", NO_ADAPTER),
    **_each("control_image controlnet_conditioning_scale control_guidance_start control_guidance_end", NO_CONTROL),
    **_each("controlnet guess_mode alwayson_scripts", NO_CONTROL),
    **_each("padding_mask_crop inpaint_full_res inpaint_full_res_padding", "cut image and mask_image yourself"),
    **_each("mask_blur inpainting_mask_invert", "draw mask_image so; white is drawn anew"),
    **_each("subseed subseed_strength seed_resize_from_h seed_resize_from_w", "use latents, noise of your own"),
    **_each("enable_hr hr_scale hr_upscaler hr_second_pass_steps hr_resize_x hr_resize_y", NO_UPSCALING),
    **_each("s_churn s_tmin s_tmax s_noise", "use eta, the share of fresh noise"),
    **_each("device", DEVICE),
    **_each("dtype torch_dtype", PRECISION),
}
# Attributes and methods of diffusers' pipelines.
ATTRIBUTES: dict[str, str] = {
    "config": "pipe.bundle says what the model is",
    "safety_checker": "pictures are not checked",
    "encode_prompt": TEXT_ALONE,
    "save_pretrained": "copy the folder pipe.bundle.root",
    "interrupt": "leave the loop over pipe.stream(...), which cancels",
    "_interrupt": "leave the loop over pipe.stream(...), which cancels",
    "guidance_scale": "give it to the call: pipe(..., guidance_scale=7.5)",
    "num_timesteps": "step.total of pipe.stream(...) is their number",
    **_each("scheduler sampler spacing", 'name it in the call: pipe(..., sampler="dpmpp_2m", spacing="karras")'),
    **_each("to cuda cpu", DEVICE),
    **_each("dtype half float", PRECISION),
    **_each("unet vae text_encoder text_encoder_2 components", ENGINE),
    **_each("tokenizer tokenizer_2", TEXT_ALONE),
    **_each("load_lora_weights unload_lora_weights fuse_lora unfuse_lora set_adapters load_lora", LORA),
    **_each("delete_adapters enable_lora disable_lora get_active_adapters", LORA),
    **_each("load_ip_adapter unload_ip_adapter set_ip_adapter_scale", NO_ADAPTER),
    **_each("controlnet", NO_CONTROL),
    **_each("from_pretrained from_single_file from_pipe", "use edgediff.load(PATH)"),
    **_each("enable_model_cpu_offload enable_sequential_cpu_offload enable_group_offload", MEMORY),
    **_each("enable_attention_slicing disable_attention_slicing set_attention_slice", MEMORY),
    **_each("enable_vae_slicing enable_vae_tiling enable_xformers_memory_efficient_attention", MEMORY),
    **_each("maybe_free_model_hooks remove_all_hooks", "pipe.close() gives everything back"),
    **_each("set_progress_bar_config progress_bar", "nothing is drawn; " + STREAM),
    **_each("numpy_to_pil image_processor", 'give output_type="pil" or "np" to the call'),
}
# Attributes that are there and cannot be set.
SETTERS = {"device": DEVICE, "engine": "use pipe.set_engine(part, engine)", "bundle": "load() another"}


def check_names(names: Iterable[str]) -> None:
    """Refuse an argument of another name by ``ArgumentError``, which says what is meant where that can be told."""
    for name in names:
        if name not in NAMES:
            raise ArgumentError(f"no argument {shown(name)}; {ARGUMENTS.get(name) or _near(name, NAMES)}")


class OwnAttributes:
    """Refuses to read or set attributes that a pipeline does not have, by an error that names the way on.

    Raises ``MissingAttributeError``.
    """

    __slots__ = ()

    if not TYPE_CHECKING:  # a type checker knows what there is

        def __getattr__(self, name: str) -> NoReturn:
            raise _missing(name, dir(type(self)))

        def __setattr__(self, name: str, value: object) -> None:
            try:
                if name == "bundle" and hasattr(self, name):
                    raise AttributeError(name)
                object.__setattr__(self, name, value)
            except AttributeError:
                raise _missing(name, dir(type(self))) from None


def _missing(name: str, known: Sequence[str]) -> MissingAttributeError:
    known = [n for n in known if not n.startswith("_")]
    if name in known:
        return MissingAttributeError(f"{name} of a pipeline cannot be set; {SETTERS.get(name, 'it can only be read')}")
    return MissingAttributeError(f"a pipeline has no {name!r}; {ATTRIBUTES.get(name) or _near(name, known)}")


def _near(name: str, known: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, 1)
    return f"did you mean {near[0]}?" if near else f"choose from {choices(known)}"
