"""Prompts are encoded by diffusers' own ``encode_prompt``; what its text encoders read and gave is kept as cases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..onnx_graph.recipes import PartRecipe
from ..precision.precisions import Case
from .recording import array

NAMES = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


@dataclass(frozen=True)
class Texts:
    """Texts are what a pipeline is called with in place of each prompt, and the cases of each text encoder."""

    kwargs: list[dict[str, Any]]
    cases: dict[str, list[Case]]


def encode_texts(pipe: Any, recipes: Sequence[PartRecipe], calls: Sequence[Mapping[str, Any]], guided: bool) -> Texts:
    """Encode the prompts of the calls, guided or not; every state that a text encoder's part gives is asked for."""
    read: dict[str, list[torch.Tensor]] = {recipe.name: [] for recipe in recipes}
    hooks = [
        getattr(pipe, recipe.component).register_forward_pre_hook(_reader(read[recipe.name]), with_kwargs=True)
        for recipe in recipes
    ]
    for recipe in recipes:
        encoder = getattr(pipe, recipe.component)
        if not hasattr(encoder, "text_model"):  # transformers 5 took it out, and diffusers' clip_skip looks for it
            object.__setattr__(encoder, "text_model", encoder)  # not as a module inside itself
    kwargs: list[dict[str, Any]] = []
    cases: dict[str, list[Case]] = {recipe.name: [] for recipe in recipes}
    for call in calls:
        for ids in read.values():
            ids.clear()
        given = _encode(pipe, call["prompt"], guided, negative_prompt=call.get("negative_prompt"))
        kwargs.append(given if guided else {k: v for k, v in given.items() if not k.startswith("negative")})
        first = {name: array(ids[0]) for name, ids in read.items()}  # the prompt's come before the negative's
        skipped = {
            f"hidden_state_{k}": _encode(pipe, call["prompt"], False, clip_skip=k)
            for k in range(1, 1 + min(_skips(recipe) for recipe in recipes))
        }
        start = 0
        for recipe in recipes:
            encoder = getattr(pipe, recipe.component)
            width = encoder.config.hidden_size
            outputs = {
                name: array(states["prompt_embeds"][..., start : start + width])
                for name, states in {"last_hidden_state": given, **skipped}.items()
                if name in recipe.outputs
            }
            if "text_embeds" in recipe.outputs:
                outputs["text_embeds"] = array(given["pooled_prompt_embeds"])
            inputs = {
                "input_ids": first[recipe.name].astype(np.int64),
                "extra_embeddings": np.zeros((1, width), np.float32),
            }
            cases[recipe.name].append((inputs, outputs))
            start += width
    for hook in hooks:
        hook.remove()
    return Texts(kwargs, cases)


def _skips(recipe: PartRecipe) -> int:
    return sum(name.startswith("hidden_state_") for name in recipe.outputs)


def _encode(pipe: Any, prompt: str, guided: bool, **more: Any) -> dict[str, Any]:
    found = pipe.encode_prompt(
        prompt=prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=guided, **more
    )
    return {name: value for name, value in zip(NAMES, found, strict=False) if value is not None}


def _reader(into: list[torch.Tensor]) -> Callable[..., None]:
    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        into.append(args[0] if args else kwargs["input_ids"])

    return hook
