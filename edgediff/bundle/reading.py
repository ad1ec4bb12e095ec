"""Reads ``bundle.json``, and refuses what it cannot mean."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from ..errors import ArgumentError, BundleError, BundleNotFoundError, choices
from ..looks import stand_in
from ..sampling.planning import plan
from ..sampling.schedule import Schedule
from .foreign.description import describe, is_foreign
from .hints import no_bundle
from .manifest import (
    KINDS,
    MANIFEST,
    NOTHING,
    OPTIONAL,
    PARTS,
    SIZES,
    SIZES_AND_SCORE,
    TENSORS,
    TEXT_ENCODERS,
    Bundle,
    Defaults,
    File,
    Golden,
    Latent,
    Part,
    Preview,
    Tensor,
    TokenizerFile,
    Word,
    needed_parts,
    sample_channels,
)

FORMAT = 1
BUILT_IN = Path(__file__).parents[1] / "models" / "emoji"

T = TypeVar("T")


def read_bundle(path: str | Path | None = None, name: str = MANIFEST) -> Bundle:
    """Read and check a bundle's manifest; the built-in model's when ``path`` is None. Parts are not opened.

    A bundle that is being made has its manifest under another ``name``.
    A folder of ONNX graphs that another exporter wrote (optimum, Olive) has no manifest; its configs stand for one.

    Raises:
        BundleNotFoundError: no such folder or manifest.
        BundleError: a manifest of another format, with a field missing or of the wrong type; a foreign folder that
            cannot be run.
    """
    root = BUILT_IN if path is None else Path(path)
    manifest = root / name
    try:
        if not manifest.is_file():
            if is_foreign(root):
                return _read_foreign(root)
            raise BundleNotFoundError(f"no bundle at {root}: {no_bundle(root)}")
        raw = manifest.read_bytes()
    except BundleError:
        raise
    except OSError as error:
        raise BundleError(f"the bundle at {root} cannot be read: {error}") from error
    try:
        data = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        wrong = stand_in(manifest)
        raise BundleError(f"{manifest} {f'is {wrong}' if wrong else f'is not JSON: {error}'}") from error
    if not isinstance(data, dict):
        raise BundleError(f"{manifest} holds {type(data).__name__}, not an object")
    if data.get("format") != FORMAT:
        raise BundleError(f"{manifest} has format {data.get('format')!r}; this edgediff reads format {FORMAT}")
    try:
        return _bundle(root, hashlib.sha256(raw).hexdigest()[:10], data)
    except BundleError as error:
        raise BundleError(f"{manifest}: {error}") from error


def _read_foreign(root: Path) -> Bundle:
    """Describe another exporter's folder as a manifest would, and check it as one."""
    data, foreign = describe(root)
    identity = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:10]
    try:
        return replace(_bundle(root, identity, data), foreign=foreign)
    except BundleError as error:
        raise BundleError(f"{root} (a folder of another exporter): {error}") from error


def _check_parts(parts: Mapping[str, Part], text: Sequence[TokenizerFile], latent: Latent) -> None:
    """That the parts fit together."""
    if len(text) > len(TEXT_ENCODERS):
        raise BundleError(f"text names {len(text)} tokenizers; at most {len(TEXT_ENCODERS)} text encoders are known")
    if "unet" not in parts:
        raise BundleError(f"part unet is missing; there are {choices(parts) or 'none'}")
    channels, inner = sample_channels(parts["unet"]), 2 * latent.channels + 1
    if channels not in (None, latent.channels, inner):
        raise BundleError(
            f"the U-Net takes {channels} channels; latents have {latent.channels}, with mask and masked picture {inner}"
        )
    for name in needed_parts(len(text), latent, channels not in (None, latent.channels)):
        if name not in parts:
            raise BundleError(f"part {name} is missing; there are {choices(parts) or 'none'}")
    if extra := [name for name in TEXT_ENCODERS[len(text) :] if name in parts]:
        raise BundleError(f"part {extra[0]} has no tokenizer; text names {len(text)}")
    inputs = {t.name: t for t in parts["unet"].inputs}
    if ("encoder_hidden_states" in inputs) != bool(text):
        raise BundleError(
            f"the U-Net has inputs {list(inputs)} and text names {len(text)} tokenizers; texts go in by "
            "encoder_hidden_states"
        )
    pooled = [t.name for name in TEXT_ENCODERS[: len(text)][-1:] for t in parts[name].outputs]
    if "text_embeds" in inputs and "text_embeds" not in pooled:
        raise BundleError(f"the U-Net takes text_embeds, and the last of {len(text)} text encoders gives none")
    if "time_ids" in inputs and inputs["time_ids"].shape[-1:] not in ((SIZES,), (SIZES_AND_SCORE,)):
        raise BundleError(
            f"the U-Net takes time_ids of shape {inputs['time_ids'].shape}; the last must be {SIZES} (SDXL) or "
            f"{SIZES_AND_SCORE} (its refiner)"
        )


def _no_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")


def _bundle(root: Path, identity: str, data: Mapping[str, Any]) -> Bundle:
    parts = {
        name: Part(
            files=tuple(_file(f) for f in _get(raw, "files", list, name)),
            inputs=tuple(_tensor(t) for t in _get(raw, "inputs", list, name)),
            outputs=tuple(_tensor(t) for t in _get(raw, "outputs", list, name)),
        )
        for name, raw in _get(data, "parts", dict).items()
    }
    if unknown := [name for name in parts if name not in PARTS]:
        raise BundleError(f"unknown part {unknown[0]!r}; choose from {choices(PARTS)}")
    for name, part in parts.items():
        if not part.files:
            raise BundleError(f"part {name} has no files")
        optional = OPTIONAL.get(name, (NOTHING, NOTHING))
        for what, tensors, needed, more in zip(
            ("input", "output"), (part.inputs, part.outputs), TENSORS[name], optional, strict=True
        ):
            if sorted(t.name for t in tensors if not more.fullmatch(t.name)) != sorted(needed):
                raise BundleError(f"part {name} has {what}s {[t.name for t in tensors]}; it must have {list(needed)}")
    latent = _make(Latent, _get(data, "latent", dict), "latent")
    defaults = _make(Defaults, _get(data, "defaults", dict), "defaults")
    if (
        min(latent.channels, latent.factor, latent.size_multiple, defaults.width, defaults.height) < 1
        or latent.scale <= 0
    ):
        raise BundleError("latent channels, factor, scale, size_multiple and the default size must be positive")
    multiple = latent.size_multiple
    if multiple % latent.factor or defaults.width % multiple or defaults.height % multiple:
        raise BundleError(
            f"size_multiple {multiple} must be a multiple of the factor {latent.factor}, "
            f"and the default size {defaults.width}x{defaults.height} one of it"
        )
    try:
        schedule = _make(Schedule, _get(data, "schedule", dict), "schedule")
    except ArgumentError as error:
        raise BundleError(f"schedule: {error}") from error
    try:
        plan(schedule, defaults.sampler, defaults.num_inference_steps, defaults.guidance_scale)
    except ArgumentError as error:
        raise BundleError(f"defaults: {error}") from error
    kind = _get(data, "kind", str)
    if kind not in KINDS:
        raise BundleError(f"unknown kind {kind!r}; choose from {choices(KINDS)}")
    preview, golden, clip = data.get("preview"), data.get("golden"), data.get("clip_sample")
    text = tuple(
        TokenizerFile(
            _file(_get(t, "file", dict, "text")), _get(t, "max_length", int, "text"), _get(t, "pad_id", int, "text")
        )
        for t in _get(data, "text", list)
    )
    for t in text:
        if t.max_length < 3 or not 0 <= t.pad_id < 2**31:
            raise BundleError(f"text has max_length {t.max_length} and pad_id {t.pad_id}; one is out of range")
    _check_parts(parts, text, latent)
    if not text and defaults.guidance_scale > 1:
        raise BundleError(f"defaults.guidance_scale is {defaults.guidance_scale:g} and there is no text to guide by")
    if clip is not None and _get(data, "clip_sample", float) <= 0:
        raise BundleError(f"clip_sample is {clip}; it must be positive")
    return Bundle(
        root=root,
        id=identity,
        name=_get(data, "name", str),
        kind=kind,
        schedule=schedule,
        latent=latent,
        defaults=defaults,
        text=text,
        parts=parts,
        preview=None if preview is None else _preview(preview, latent.channels),
        golden=None if golden is None else _golden(golden),
        embeddings=tuple(
            Word(_get(w, "word", str, "embeddings"), _file(_get(w, "file", dict, "embeddings")))
            for w in _get({"embeddings": [], **data}, "embeddings", list)
        ),
        zero_negative=_get({"zero_negative": False, **data}, "zero_negative", bool),
        clip_sample=None if clip is None else float(clip),
        licence=_get({"licence": "", **data}, "licence", str),
        provenance=_get({"provenance": {}, **data}, "provenance", dict),
        parity=_get({"parity": {}, **data}, "parity", dict),
    )


def _get(data: Any, key: str, kind: type[T], where: str = "") -> T:
    label = f"{where}.{key}" if where else key
    if not isinstance(data, Mapping) or key not in data:
        raise BundleError(f"{label} is missing")
    value = data[key]
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise BundleError(f"{label} is {value!r}; it must be of type {kind.__name__}")
    return value


_KINDS: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool, "float | None": float}


def _make(cls: type[T], data: Mapping[str, Any], where: str) -> T:
    """A flat dataclass from a flat object: every given field typed, unknown ones ignored, absent ones defaulted."""
    values: dict[str, Any] = {}
    for f in fields(cls):  # type: ignore[arg-type]
        if f.name in data or f.default is MISSING:
            values[f.name] = _get(data, f.name, _KINDS[str(f.type)], where)
    return cls(**values)


def _file(data: Any) -> File:
    file = _make(File, data if isinstance(data, Mapping) else {}, "file")
    pure = PurePosixPath(file.path)
    if pure.is_absolute() or ".." in pure.parts or "\\" in file.path or ":" in file.path or not pure.parts:
        raise BundleError(f"file path {file.path!r} leaves the bundle; it must be relative, with forward slashes")
    return file


def _tensor(data: Any) -> Tensor:
    shape = _get(data, "shape", list, "tensor")
    if not all(isinstance(s, (int, str)) and not isinstance(s, bool) for s in shape):
        raise BundleError(f"tensor shape {shape!r} holds something other than numbers and names")
    return Tensor(_get(data, "name", str, "tensor"), _get(data, "dtype", str, "tensor"), tuple(shape))


def _golden(data: Any) -> Golden:
    pictures = _get(data, "pictures", list, "golden")
    if not all(isinstance(call, dict) for call in pictures):
        raise BundleError("golden.pictures must be a list of objects, the arguments of each call")
    file = _file(_get(data, "file", dict, "golden"))
    return Golden(file, tuple(pictures), _get(data, "floor", float, "golden"))


def _preview(data: Any, channels: int) -> Preview:
    weight, bias = _get(data, "weight", list, "preview"), _get(data, "bias", list, "preview")
    numbers = all(
        isinstance(r, list) and len(r) == 3 and all(type(v) in (int, float) for v in r) for r in [*weight, bias]
    )
    if len(weight) != channels or not numbers:
        raise BundleError(f"preview.weight must be {channels} x 3 numbers and preview.bias 3")
    return Preview(tuple(tuple(float(v) for v in row) for row in weight), tuple(float(v) for v in bias))
