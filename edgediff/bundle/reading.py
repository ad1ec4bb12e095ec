"""Reads ``bundle.json``, and refuses what it cannot mean."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checks import file_path
from ..confined import confined
from ..errors import ArgumentError, BundleError, BundleNotFoundError, choices, shown
from ..sampling.planning import plan
from ..sampling.schedule import Schedule
from . import bounds
from .fields import file_of, files_of, get, items, make, name_of, optional, tensors_of
from .fitting import check_factor, check_parts, check_tensors
from .foreign.description import describe, is_foreign
from .hints import no_bundle
from .manifest import KINDS, MANIFEST, PARTS, Bundle, Defaults, Golden, Latent, Part, Preview, TokenizerFile, Word
from .strict_json import parse_object, read_inside

FORMAT = 1
BUILT_IN = Path(__file__).parents[1] / "models" / "emoji"


def read_bundle(path: str | Path | None = None, name: str = MANIFEST) -> Bundle:
    """Read and check a bundle's manifest; the built-in model's when ``path`` is None. Parts are not opened.

    A bundle that is being made has its manifest under another ``name``.
    A folder of ONNX graphs that another exporter wrote (optimum, Olive) has no manifest; its configs stand for one.

    Raises:
        ArgumentError: ``path`` is no path.
        BundleNotFoundError: no such folder or manifest.
        BundleError: a manifest of another format, with a field missing or of the wrong type; a foreign folder that
            cannot be run.
    """
    root = BUILT_IN if path is None else file_path("path", path)
    manifest = root / name
    try:
        if not confined(root, manifest).is_file():
            if is_foreign(root):
                return _read_foreign(root)
            raise BundleNotFoundError(f"no bundle at {root}: {no_bundle(root)}")
        raw = read_inside(root, manifest, bounds.MAX_MANIFEST)
    except BundleError:
        raise
    except (OSError, ValueError) as error:  # a NUL in the path
        raise BundleError(f"the bundle at {root} cannot be read: {error}") from error
    data = parse_object(manifest, raw)
    if type(data.get("format")) is not int or data["format"] != FORMAT:
        raise BundleError(f"{manifest} has format {shown(data.get('format'))}; this edgediff reads format {FORMAT}")
    try:
        return _bundle(root, hashlib.sha256(raw).hexdigest()[:10], data)
    except BundleError as error:
        raise BundleError(f"{manifest}: {error}") from error


def _read_foreign(root: Path) -> Bundle:
    """Describe another exporter's folder as a manifest would, and check it as one."""
    data, foreign = describe(root)
    identity = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:10]
    try:
        return replace(_bundle(root, identity, data, hashed=False), foreign=foreign)
    except BundleError as error:
        raise BundleError(f"{root} (a folder of another exporter): {error}") from error


def _bundle(root: Path, identity: str, data: Mapping[str, Any], hashed: bool = True) -> Bundle:
    """The bundle that a manifest describes; ``hashed`` where it says what its files must hash to."""
    latent = make(Latent, get(data, "latent", dict), "latent", bounds.LATENT)
    defaults = make(Defaults, get(data, "defaults", dict), "defaults", bounds.DEFAULTS)
    multiple = latent.size_multiple
    if multiple % latent.factor or defaults.width % multiple or defaults.height % multiple:
        raise BundleError(
            f"size_multiple {multiple} must be a multiple of the factor {latent.factor}, "
            f"and the default size {defaults.width}x{defaults.height} one of it"
        )
    schedule = _schedule(get(data, "schedule", dict), defaults)
    kind = name_of(data, "kind")
    if kind not in KINDS:
        raise BundleError(f"unknown kind {shown(kind)}; choose from {choices(KINDS)}")
    text = tuple(
        TokenizerFile(
            file_of(get(t, "file", dict, "text"), hashed),
            *(get(t, key, int, "text", bounds.TEXT[key]) for key in ("max_length", "pad_id")),
        )
        for t in items(data, "text", len(PARTS))
    )
    parts = _parts(get(data, "parts", dict), hashed)
    check_parts(parts, text, latent)
    check_factor(parts, latent)
    if not text and defaults.guidance_scale > 1:
        raise BundleError(f"defaults.guidance_scale is {defaults.guidance_scale:g} and there is no text to guide by")
    preview, golden, clip = data.get("preview"), data.get("golden"), data.get("clip_sample")
    bundle = Bundle(
        root=root,
        id=identity,
        name=name_of(data, "name"),
        kind=kind,
        schedule=schedule,
        latent=latent,
        defaults=defaults,
        text=text,
        parts=parts,
        preview=None if preview is None else _preview(preview, latent.channels),
        golden=None if golden is None else _golden(golden, hashed),
        embeddings=tuple(
            Word(name_of(w, "word", "embeddings"), file_of(get(w, "file", dict, "embeddings"), hashed))
            for w in items({"embeddings": [], **data}, "embeddings", bounds.MAX_WORDS)
        ),
        zero_negative=optional(data, "zero_negative", bool, False),
        clip_sample=None if clip is None else get(data, "clip_sample", float, "", bounds.CLIP_SAMPLE),
        licence=optional(data, "licence", str, ""),
        provenance=_provenance(optional(data, "provenance", dict, {})),
        parity=_parity(optional(data, "parity", dict, {})),
    )
    _check_once(bundle)
    return bundle


def _schedule(data: Mapping[str, Any], defaults: Defaults) -> Schedule:
    """The schedule, on which the default run can be planned."""
    try:
        schedule = make(Schedule, data, "schedule", bounds.SCHEDULE)
    except ArgumentError as error:
        raise BundleError(f"schedule: {error}") from error
    try:
        plan(schedule, defaults.sampler, defaults.num_inference_steps, defaults.guidance_scale)
    except ArgumentError as error:
        raise BundleError(f"defaults: {error}") from error
    return schedule


def _parts(data: Mapping[str, Any], hashed: bool) -> dict[str, Part]:
    if unknown := [name for name in data if name not in PARTS]:
        raise BundleError(f"unknown part {shown(unknown[0])}; choose from {choices(PARTS)}")
    parts = {}
    for name, raw in data.items():
        files = files_of(raw, name, hashed)
        parts[name] = part = Part(files, tensors_of(raw, "inputs", name), tensors_of(raw, "outputs", name))
        check_tensors(name, part)
    return parts


def _check_once(bundle: Bundle) -> None:
    """No file and no word stands for two."""
    for what, names in (
        ("file", [file.path for _, file in bundle.files()]),
        ("embeddings: the word", [word.word for word in bundle.embeddings]),
    ):
        seen: set[str] = set()
        for name in names:
            if name in seen:
                raise BundleError(f"{what} {shown(name)} is listed twice")
            seen.add(name)


def _golden(data: Any, hashed: bool) -> Golden:
    pictures = items(data, "pictures", bounds.MAX_PICTURES, "golden")
    if not all(isinstance(call, dict) for call in pictures):
        raise BundleError("golden.pictures must be a list of objects, the arguments of each call")
    file = file_of(get(data, "file", dict, "golden"), hashed)
    if file.size > bounds.MAX_GOLDEN:
        raise BundleError(f"golden: {file.path} has {file.size} bytes; golden tensors have at most {bounds.MAX_GOLDEN}")
    return Golden(file, tuple(pictures), get(data, "floor", float, "golden", bounds.FLOOR))


def _preview(data: Any, channels: int) -> Preview:
    weight, bias = get(data, "weight", list, "preview"), get(data, "bias", list, "preview")
    numbers = all(
        isinstance(r, list) and len(r) == 3 and all(type(v) in (int, float) and abs(v) <= bounds.PREVIEW for v in r)
        for r in [*weight, bias]
    )
    if len(weight) != channels or not numbers:
        raise BundleError(
            f"preview.weight must be {channels} x 3 numbers and preview.bias 3, of at most {bounds.PREVIEW:g}"
        )
    return Preview(tuple(tuple(float(v) for v in row) for row in weight), tuple(float(v) for v in bias))


def _provenance(data: dict[str, Any]) -> dict[str, Any]:
    """What made the bundle; free, but for the words that are printed."""
    if "reference" in data:
        name_of(data, "reference", "provenance")
    return data


def _parity(data: dict[str, Any]) -> dict[str, Any]:
    """What was measured; free, but for the numbers that are read."""
    for name in PARTS:
        where = f"parity.{name}"
        facts = optional(data, name, dict, {})
        for key in ("relative", "max_abs", "ceiling"):
            if key in facts:
                get(facts, key, float, where, bounds.PARITY)
        if not isinstance(facts.get("kept_fp32", []), (list, dict)):
            raise BundleError(f"{where}.kept_fp32 is {shown(facts['kept_fp32'])}; it must be a list of nodes")
    return data
