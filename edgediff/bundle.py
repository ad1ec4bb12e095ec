"""The bundle: a folder with ``bundle.json`` and one set of files a part. Its schema is ``bundle.schema.json``."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from .errors import ArgumentError, BundleError, BundleNotFoundError, choices
from .sampling.planning import Plan, plan
from .sampling.schedule import Schedule

FORMAT = 1
MANIFEST = "bundle.json"
TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
PARTS = (*TEXT_ENCODERS, "unet", "vae_decoder", "vae_encoder", "preview_decoder")
KINDS = ("stable-diffusion", "stable-diffusion-xl", "pixel")
# What the runtime feeds each part and reads from it.
TENSORS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "text_encoder": (("input_ids",), ("last_hidden_state",)),
    "text_encoder_2": (("input_ids",), ("last_hidden_state",)),
    "unet": (("sample", "timestep"), ("out_sample",)),
    "vae_decoder": (("latent_sample",), ("sample",)),
    "vae_encoder": (("sample",), ("latent_mean",)),
    "preview_decoder": (("latent_sample",), ("sample",)),
}
# Patterns of what a part may take and give besides. A text encoder: vectors for textual inversion; the states that
# clip_skip 1, 2, ... read, and the pooled state. A U-Net: texts, SDXL's pooled text and sizes, LCM's guidance scale. A
# VAE encoder: what its latents spread by.
EXTRA_INPUT, SKIPPED_OUTPUT = re.compile("extra_embeddings"), re.compile("hidden_state_([1-9][0-9]?)")
NOTHING = re.compile("(?!)")
OPTIONAL = {
    **{name: (EXTRA_INPUT, re.compile(f"{SKIPPED_OUTPUT.pattern}|text_embeds")) for name in TEXT_ENCODERS},
    "unet": (re.compile("encoder_hidden_states|text_embeds|time_ids|timestep_cond"), NOTHING),
    "vae_encoder": (NOTHING, re.compile("latent_logvar")),
}
# Numbers in time_ids: original height and width, crop's top and left, then the target's height and width (SDXL) or an
# aesthetic score (its refiner).
SIZES, SIZES_AND_SCORE = 6, 5
MAX_SIZE = 16_384  # pixels a side; beyond it a typing error is likelier than a wish
BUILT_IN = Path(__file__).parent / "models" / "emoji"

CFG_PLUS_PLUS = 0.6  # default guidance_scale of cfg++ (the paper's lambda)

T = TypeVar("T")


@dataclass(frozen=True)
class File:
    """One file of a part: which engine opens it, how its weights are stored, and what it must hash to."""

    engine: str
    precision: str
    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Tensor:
    """A named input or output; symbolic dimensions are strings (``batch``, ``height``)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Part:
    files: tuple[File, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Latent:
    """``picture = decode(latent / scale + shift)``; a latent cell covers ``factor`` pixels a side. With factor 1 there
    is no decoder: the U-Net works on pixels.
    """

    channels: int
    factor: int
    scale: float
    shift: float
    size_multiple: int  # height and width in pixels must divide by it (the U-Net halves latents too)


@dataclass(frozen=True)
class Text:
    """One text encoder's tokenizer."""

    file: File
    max_length: int
    pad_id: int


@dataclass(frozen=True)
class Defaults:
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    sampler: str


@dataclass(frozen=True)
class Preview:
    """``rgb = latent @ weight + bias`` in [-1, 1], fitted at export; weight is (channels, 3)."""

    weight: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]


@dataclass(frozen=True)
class Word:
    """A textual inversion that comes with the bundle."""

    word: str
    file: File


@dataclass(frozen=True)
class Golden:
    """What torch gave at export: tensors in a file, the calls whose ``pictures`` are among them, and how near (PSNR in
    dB) these must come.
    """

    file: File
    pictures: tuple[Mapping[str, Any], ...]
    floor: float


@dataclass(frozen=True)
class Bundle:
    """A manifest that was read and checked. ``id`` is the start of the manifest's own sha256."""

    root: Path
    id: str
    name: str
    kind: str
    schedule: Schedule
    latent: Latent
    defaults: Defaults
    text: tuple[Text, ...]
    parts: Mapping[str, Part]
    preview: Preview | None = None
    golden: Golden | None = None
    embeddings: tuple[Word, ...] = ()
    zero_negative: bool = False  # no negative prompt means embeddings of zeros, as SDXL was trained
    clip_sample: float | None = None  # x0 estimates stay within plus or minus this, and noise estimates follow
    licence: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)

    def plan(
        self,
        sampler: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        spacing: str | None = None,
        *,
        eta: float | None = None,
        guidance: str = "cfg",
        guidance_interval: tuple[float, float] | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> Plan:
        """The table of a run on this model; what is None is the bundle's default. Raises ``ArgumentError``.

        See ``edgediff.plan``. CFG++ has its own default scale, since its lambda is another quantity. Where the U-Net
        takes the scale as an input, there is no guidance in the table; where it reads no text, there is none at all.
        """
        default = self.defaults
        if self.embeds_guidance:
            guidance_scale = 1.0
        scale: float | Sequence[float] = CFG_PLUS_PLUS if guidance == "cfg++" else default.guidance_scale
        scale = scale if guidance_scale is None else guidance_scale
        steps = default.num_inference_steps if timesteps is None and sigmas is None else None
        table = plan(
            self.schedule,
            default.sampler if sampler is None else sampler,
            steps if num_inference_steps is None else num_inference_steps,
            scale,
            spacing,
            eta=eta,
            guidance=guidance,
            guidance_interval=guidance_interval,
            timesteps=timesteps,
            sigmas=sigmas,
        )
        if table.guided and not self.text:
            raise ArgumentError(
                f"guidance_scale is {scale}; bundle {self.name!r} takes no prompt to guide by: leave it 1"
            )
        return table

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The parts that read the prompt, one for each of ``text``."""
        return TEXT_ENCODERS[: len(self.text)]

    @property
    def needed(self) -> tuple[str, ...]:
        """The parts that every call runs."""
        return _needed(len(self.text), self.latent, self.inpaints)

    def unet_input(self, name: str) -> Tensor | None:
        """The U-Net's input of that name; None where it takes none."""
        return next((t for t in self.parts["unet"].inputs if t.name == name), None)

    @property
    def inpaints(self) -> bool:
        """Whether the U-Net reads a mask and a masked picture beside the latents."""
        return _channels(self.parts["unet"]) not in (None, self.latent.channels)

    @property
    def embeds_guidance(self) -> bool:
        """Whether the U-Net takes the guidance scale as an input (LCM) and is never called without the prompt."""
        return self.unet_input("timestep_cond") is not None

    @property
    def clip_skips(self) -> tuple[int, ...]:
        """The values of ``clip_skip`` that every text encoder offers besides 0."""
        offered = []
        for part in self.text_encoders:
            names = (SKIPPED_OUTPUT.fullmatch(t.name) for t in self.parts[part].outputs)
            offered.append({int(found[1]) for found in names if found})
        return tuple(sorted(set.intersection(*offered))) if offered else ()

    @property
    def embedding_widths(self) -> tuple[int, ...] | None:
        """Widths of the vectors that textual inversions must have, one a text encoder; None where one takes none."""
        widths = []
        for part in self.text_encoders:
            shapes = [t.shape for t in self.parts[part].inputs if EXTRA_INPUT.fullmatch(t.name)]
            if not shapes or not isinstance(width := shapes[0][-1], int):
                return None
            widths.append(width)
        return tuple(widths) or None

    @property
    def max_chunks(self) -> int | None:
        """How many chunks of text the U-Net takes; None where its input is of any length."""
        t = self.unet_input("encoder_hidden_states")
        if t is not None and len(t.shape) == 3 and isinstance(tokens := t.shape[1], int):
            return max(1, tokens // self.text[0].max_length)
        return None

    def files(self) -> list[tuple[str, File]]:
        """Every file with the name of the part it belongs to."""
        out = [("tokenizer", text.file) for text in self.text]
        out += [(name, file) for name, part in self.parts.items() for file in part.files]
        out += [("embedding", word.file) for word in self.embeddings]
        return out + ([("golden", self.golden.file)] if self.golden else [])

    def path(self, part: str, file: File, *, hashed: bool = True) -> Path:
        """The file's path, after its size (and, when ``hashed``, its sha256) was found to be right.

        Raises:
            BundleNotFoundError: no such file.
            BundleError: another size or checksum than the manifest's.
        """
        try:
            return self._checked(part, file, hashed)
        except BundleError:
            raise
        except OSError as error:
            raise BundleError(f"bundle {self.name!r}: {part}: {file.path} cannot be read: {error}") from error

    def _checked(self, part: str, file: File, hashed: bool) -> Path:
        path = self.root / file.path
        if not path.is_file():
            raise BundleNotFoundError(f"bundle {self.name!r}: {part} needs {file.path}, which is not in {self.root}")
        size = path.stat().st_size
        if size != file.size:
            raise BundleError(
                f"bundle {self.name!r}: {part}: {file.path} has {size} bytes, the manifest says {file.size}"
            )
        if hashed and (found := sha256(path)) != file.sha256:
            raise BundleError(
                f"bundle {self.name!r}: {part}: {file.path} is damaged: its sha256 is {found[:16]}..., "
                f"the manifest says {file.sha256[:16]}..."
            )
        return path


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while piece := f.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def read(path: str | Path | None = None) -> Bundle:
    """Read and check a bundle's manifest; the built-in model's when ``path`` is None. Parts are not opened.

    Raises:
        BundleNotFoundError: no such folder or manifest.
        BundleError: a manifest of another format, with a field missing or of the wrong type.
    """
    root = BUILT_IN if path is None else Path(path)
    manifest = root / MANIFEST
    try:
        if not manifest.is_file():
            what = "is not a folder" if not root.is_dir() else f"has no {MANIFEST}"
            raise BundleNotFoundError(f"no bundle at {root}: it {what}")
        raw = manifest.read_bytes()
    except BundleError:
        raise
    except OSError as error:
        raise BundleError(f"the bundle at {root} cannot be read: {error}") from error
    try:
        data = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{manifest} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise BundleError(f"{manifest} holds {type(data).__name__}, not an object")
    if data.get("format") != FORMAT:
        raise BundleError(f"{manifest} has format {data.get('format')!r}; this edgediff reads format {FORMAT}")
    try:
        return _bundle(root, hashlib.sha256(raw).hexdigest()[:10], data)
    except BundleError as error:
        raise BundleError(f"{manifest}: {error}") from error


def _needed(encoders: int, latent: Latent, inpaints: bool) -> tuple[str, ...]:
    decoder = ("vae_decoder",) if latent.factor > 1 else ()
    return (*TEXT_ENCODERS[:encoders], "unet", *decoder, *(("vae_encoder",) if inpaints else ()))


def _channels(unet: Part) -> int | None:
    """Of the U-Net's sample, where they are fixed."""
    shape = next(t.shape for t in unet.inputs if t.name == "sample")
    return channels if len(shape) == 4 and isinstance(channels := shape[1], int) else None


def _check_parts(parts: Mapping[str, Part], text: Sequence[Text], latent: Latent) -> None:
    """That the parts fit together."""
    if len(text) > len(TEXT_ENCODERS):
        raise BundleError(f"text names {len(text)} tokenizers; at most {len(TEXT_ENCODERS)} text encoders are known")
    if "unet" not in parts:
        raise BundleError(f"part unet is missing; there are {choices(parts) or 'none'}")
    channels, inner = _channels(parts["unet"]), 2 * latent.channels + 1
    if channels not in (None, latent.channels, inner):
        raise BundleError(
            f"the U-Net takes {channels} channels; latents have {latent.channels}, with mask and masked picture {inner}"
        )
    for name in _needed(len(text), latent, channels not in (None, latent.channels)):
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
        Text(_file(_get(t, "file", dict, "text")), _get(t, "max_length", int, "text"), _get(t, "pad_id", int, "text"))
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


_KINDS: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool}


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
