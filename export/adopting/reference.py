"""The golden tensors of an adopted bundle: what the source's own graphs answer, by ONNX Runtime."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgediff.bundle.manifest import Bundle
from edgediff.engines.base import Engine, EngineOptions
from edgediff.engines.onnxruntime import BACKEND
from edgediff.prompts.tokenizer import Tokenizer

from ..precision.precisions import Case
from ..proof.golden import picture_arguments, picture_arrays
from ..proof.lazy_pipeline import pipeline_of

Arrays = dict[str, NDArray[Any]]


def draw_reference(source: Bundle, size: int) -> tuple[dict[str, list[Case]], Arrays, list[dict[str, Any]]]:
    """Have the source's graphs draw the golden pictures.

    Args:
        source: a foreign folder.
        size: of its files, in bytes.

    Returns:
        What each part was asked and answered: an example, then real calls; the pictures, and what they take besides a
        call's arguments, by golden names; and those arguments.
    """
    pipe, engines = pipeline_of(source, {part: partial(_open, source, part) for part in source.parts}, size)
    calls, pictures = _calls(source, size), {}
    for k, call in enumerate(calls):
        arrays = picture_arrays(source, call, from_picture=False)
        arguments: dict[str, Any] = {**call, **arrays, "output_type": "np"}
        pictures[f"picture.{k}"] = np.asarray(pipe(**arguments).images[0])
        pictures |= {f"picture.{k}.{name}": values for name, values in arrays.items()}
    cases: dict[str, list[Case]] = {}
    for part, engine in engines.items():
        # The first call, from pure noise, and the last of the first picture.
        last = len(engine.calls) // len(calls) - 1
        asked = [engine.calls[k] for k in sorted({0, max(0, last)})] if engine.calls else []
        engine(**_example(source, part))
        cases[part] = [engine.calls[-1], *asked]
    return cases, pictures, calls


def _open(source: Bundle, part: str) -> Engine:
    """Open a part of the folder as it is."""
    return BACKEND.open(source, part, EngineOptions(), None)


def _calls(source: Bundle, bytes_: int) -> list[dict[str, Any]]:
    """The calls whose pictures are compared; of the one size that the graphs take, where they do."""
    width, height = source.fixed_size
    fixed = {side: size for side, size in (("width", width), ("height", height)) if size is not None}
    return [{**call, **fixed} for call in picture_arguments(source, bytes_)]


def _example(source: Bundle, part: str) -> Arrays:
    """Inputs of two images, of another size than the pictures where sizes are open."""
    random, latent = np.random.default_rng(0), source.latent
    side = latent.size_multiple // latent.factor
    sizes = {"batch": 2, "latent_height": 2 * side, "latent_width": side}
    sizes |= {name: sizes[f"latent_{name}"] * latent.factor for name in ("height", "width")}
    out: Arrays = {}
    for tensor in source.parts[part].inputs:
        texts = source.text[source.text_encoders.index(part)] if part in source.text_encoders else source.text[0]
        shape = [s if isinstance(s, int) else sizes.get(s, texts.max_length) for s in tensor.shape]
        if tensor.name == "input_ids":
            out[tensor.name] = _ids(source, part, shape)
        elif tensor.name == "timestep":
            out[tensor.name] = np.full(shape, source.schedule.num_train_timesteps // 2 + 1, np.float32)
        elif tensor.name == "time_ids":
            numbers = [1024.0, 1024, 0, 0, 1024, 1024][: shape[1]]
            out[tensor.name] = np.array([numbers] * shape[0], np.float32)
        else:
            out[tensor.name] = random.standard_normal(shape).astype(np.float32)
    return out


def _ids(source: Bundle, part: str, shape: list[int]) -> NDArray[np.int64]:
    """Token ids between begin and end, of the part's own tokenizer."""
    text = source.text[source.text_encoders.index(part)]
    tokenizer = Tokenizer(source.root / text.file.path, text.max_length, text.pad_id)
    ids = np.random.default_rng(0).integers(0, min(tokenizer.begin, tokenizer.end), shape)
    ids[:, 0], ids[:, shape[1] // 2 :] = tokenizer.begin, tokenizer.end
    return ids.astype(np.int64)
