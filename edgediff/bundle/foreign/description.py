"""A foreign folder, described as a manifest describes a bundle, and how its graphs stand for the parts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import BundleError, BundleNotFoundError, choices, printable
from ...sampling.names import from_config
from ..scheduler_config import as_run, default_steps, schedule_of
from ..strict_json import read_object
from . import signatures
from .adaptation import Adaptation, Foreign
from .facts import Configs, check_unet, default_size, latent_facts, whole
from .parts import file_entry, part_entry
from .scheduler_defaults import completed
from .tokenizers import text_facts, tokenizer_file

INDEX, SCHEDULER = "model_index.json", "scheduler_config.json"
ENCODERS = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))
OURS = ("text_encoder", "text_encoder_2")  # a model with one text encoder calls it the first, whatever its folder
TORCH = ("*.safetensors", "*.bin")  # files of torch's weights
PREFIXES = ("ORT", "Onnx")  # of diffusers' class names in the copies that are published


def is_foreign(root: Path) -> bool:
    """Whether a folder holds parts as other exporters lay them out: ``PART/model.onnx``, and no torch U-Net instead."""
    unet = root / "unet"
    if not (unet / signatures.MODEL).is_file() and any(p for kind in TORCH for p in unet.glob(kind)):
        return False
    return any(root.glob(f"*/{signatures.MODEL}"))


def describe(root: Path) -> tuple[dict[str, Any], Foreign]:
    """Describe a folder as ``bundle.json`` does, and tell how its graphs stand for the parts.

    Raises:
        BundleError, BundleNotFoundError: what cannot be run; the message names the file and the fact.
    """
    configs = Configs(root)
    index = read_object(root, root / INDEX) if (root / INDEX).is_file() else {}
    encoders = _encoders(root, index)
    unet = signatures.unet(root)
    config = configs.of("unet")
    check_unet(config)
    large = _is_large(unet)
    decoder = signatures.vae_decoder(root)
    latent = latent_facts(configs, decoder, large)
    parts = {}
    texts = []
    for ours, (folder, tokenizer) in zip(OURS, encoders, strict=False):
        last = folder == encoders[-1][0]
        own = configs.of(folder)
        parts[ours] = signatures.text_encoder(root, folder, own, large, large and last)
        file = tokenizer_file(root, root / tokenizer)
        shape = parts[ours].inputs["input_ids"].shape
        facts = text_facts(root, root / tokenizer, file, own, shape[-1])
        texts.append({"file": file_entry(root, file, "tokenizers", "-"), **facts})
    parts |= {"unet": unet, "vae_decoder": decoder}
    channels = _channels(unet, config, latent["channels"])
    if (root / "vae_encoder" / signatures.MODEL).is_file():
        try:
            parts["vae_encoder"] = signatures.vae_encoder(root)
        except BundleError as error:
            if channels != latent["channels"]:
                raise
            configs.notes.append(f"the VAE encoder is left out, which this model does not need: {error}")
    scheduler = _scheduler(root, index, configs)
    steps = default_steps(scheduler, {**config, **_embeds_guidance(unet)}, True, large)
    data = {
        "format": 1,
        "name": root.resolve().name.encode("utf-8", "replace").decode(),  # a name on disk may be no text
        "kind": "stable-diffusion-xl" if large else "stable-diffusion",
        "schedule": schedule_of(scheduler),
        "latent": latent,
        "defaults": {
            **default_size(configs, unet, latent, large),
            **steps,
            "sampler": (from_config(scheduler) or ("ddim", None))[0],
        },
        "text": texts,
        "parts": _entries(root, configs, parts, [folder for folder, _ in encoders], latent["channels"], channels),
        "zero_negative": large and index.get("force_zeros_for_empty_prompt") is not False,  # what diffusers assumes
        "provenance": {"source_class": str(index.get("_class_name"))[:80], "producer": unet.header.producer},
    }
    return data, Foreign(parts, tuple(configs.notes))


def _encoders(root: Path, index: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The folders of the text encoders and their tokenizers."""
    here = {path.parent.name for path in root.glob(f"*/{signatures.MODEL}")}
    what = str(index.get("_class_name", "a pipeline"))[:80]
    if "transformer" in here:
        raise BundleError(f"{root} is {what} with a transformer; this version runs models with a U-Net")
    if "text_encoder_3" in here:
        raise BundleError(f"{root} is {what} with a third text encoder; this version runs models with one or two")
    if more := [name for name in sorted(here) if name.startswith(("controlnet", "image_encoder"))]:
        raise BundleError(f"{root} is {what} with a part {more[0]}, which this version cannot run")
    for part in ("unet", "vae_decoder"):
        if part not in here:
            raise BundleNotFoundError(f"{root / part / signatures.MODEL} is missing; there are {choices(sorted(here))}")
    encoders = [(encoder, tokenizer) for encoder, tokenizer in ENCODERS if encoder in here]
    for encoder, _ in ENCODERS:
        listed = index.get(encoder)
        if encoder not in here and isinstance(listed, list) and None not in listed:
            raise BundleNotFoundError(f"{root / encoder / signatures.MODEL} is missing, and {INDEX} names it")
    if not encoders:
        raise BundleNotFoundError(f"{root} holds no text encoder; there are {choices(sorted(here))}")
    return encoders


def _is_large(unet: Adaptation) -> bool:
    """Whether the U-Net is SDXL's kind, told pooled texts and sizes."""
    both = {"text_embeds", "time_ids"} & set(unet.inputs)
    if len(both) == 1:
        raise BundleError(f"unet/{signatures.MODEL} takes {choices(both)} alone; SDXL's takes text_embeds and time_ids")
    return bool(both)


def _embeds_guidance(unet: Adaptation) -> dict[str, Any]:
    return {"time_cond_proj_dim": unet.inputs["timestep_cond"].shape[-1]} if "timestep_cond" in unet.inputs else {}


def _channels(unet: Adaptation, config: Mapping[str, Any], latent: int) -> int:
    """How many channels the U-Net's sample has."""
    shape = unet.inputs["sample"].shape
    declared = shape[1] if len(shape) == 4 else "?"
    return declared if isinstance(declared, int) else whole(config, "in_channels", "unet") or latent


def _scheduler(root: Path, index: Mapping[str, Any], configs: Configs) -> dict[str, Any]:
    """The scheduler's config with every setting, as diffusers' pipeline of that class runs it."""
    path = root / "scheduler" / SCHEDULER
    config = completed(read_object(root, path), path)
    name = str(index.get("_class_name"))
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    scheduler = as_run(config, name, True)
    if scheduler.get("clip_sample"):
        raise BundleError(f"{path}: clip_sample is True, which is for models of pixels")
    if from_config(scheduler) is None:
        name = printable(scheduler["_class_name"][:80])
        configs.notes.append(f"{name} with its settings has no twin here: the default is ddim")
    return scheduler


def _entries(
    root: Path,
    configs: Configs,
    parts: Mapping[str, Adaptation],
    folders: list[str],
    latents: int,
    channels: int,
) -> dict[str, Any]:
    """The parts as a manifest lists them, with the sizes that hold between them."""
    unet, widths = parts["unet"], {}
    for ours, folder in zip(OURS, folders, strict=False):
        config = configs.of(folder)
        given = parts[ours].outputs["last_hidden_state"].port.shape
        width = given[-1] if len(given) == 3 and isinstance(given[-1], int) else whole(config, "hidden_size", folder)
        pooled = whole(config, "projection_dim", folder) or width
        widths[ours] = width, pooled
    texts = [width for width, _ in widths.values()]
    taken = unet.inputs["encoder_hidden_states"].shape[-1]
    if isinstance(taken, int) and None not in texts and sum(w for w in texts if w) != taken:
        raise BundleError(f"the U-Net reads texts of width {taken}, the text encoders give {texts}")
    known: dict[str, int] = {"sample": channels, "out_sample": latents}
    if None not in texts:
        known["encoder_hidden_states"] = sum(w for w in texts if w)
    if (last := list(widths.values())[-1][1]) is not None:
        known["text_embeds"] = last
    if (dim := whole(configs.of("unet"), "time_cond_proj_dim", "unet")) is not None:
        known["timestep_cond"] = dim
    elif "timestep_cond" in unet.inputs and not isinstance(unet.inputs["timestep_cond"].shape[-1], int):
        raise BundleError("unet: neither its graph nor its config (time_cond_proj_dim) says how wide timestep_cond is")
    out = {}
    for name, adaptation in parts.items():
        if name in OURS:
            width, pooled = widths[name]
            own = {t: width for t in adaptation.outputs if width is not None}
            own |= {"text_embeds": pooled} if pooled is not None else {}
            entry = part_entry(root, adaptation, "text", own)
        elif name == "unet":
            entry = part_entry(root, adaptation, name, known)
        elif name == "vae_decoder":
            entry = part_entry(root, adaptation, name, {"latent_sample": latents, "sample": 3})
        else:
            entry = part_entry(root, adaptation, name, {"sample": 3, "latent_mean": latents, "latent_logvar": latents})
        out[name] = entry
    return out
