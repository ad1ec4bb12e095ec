"""What a bundle says: a folder with ``bundle.json`` and one set of files a part (see ``bundle.schema.json``)."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..confined import confined
from ..errors import BundleError, BundleNotFoundError, shown
from ..files import open_regular
from ..looks import stand_in
from ..sampling.schedule import Schedule
from .foreign.adaptation import Foreign

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
HASH_LIMIT = 64 << 20  # bytes; larger files are hashed by `edgediff verify`, not at every load
WEIGHTS = "onnx-data"  # external weights, opened by the .onnx file beside which they lie
FOREIGN = "onnx-foreign"  # a graph of another exporter, adapted as it runs
PLAIN = "onnx-plain"  # a graph without fused attention, for building engines


@dataclass(frozen=True)
class File:
    """One file of a part: which engine opens it, how its weights are stored, and what it must hash to (an empty text in
    a foreign folder, of which nobody has said it).
    """

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
    size_multiple: int  # height and width in pixels must divide by it: the factor, or more where a U-Net must halve


@dataclass(frozen=True)
class TokenizerFile:
    """This file holds one text encoder's tokenizer."""

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
    """A word stands for a textual inversion that comes with the bundle."""

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
    """A bundle is a manifest that was read and checked. ``id`` is the start of the manifest's own sha256.

    ``foreign`` says how another exporter's graphs stand for the parts; None for a bundle of our own.
    """

    root: Path
    id: str
    name: str
    kind: str
    schedule: Schedule
    latent: Latent
    defaults: Defaults
    text: tuple[TokenizerFile, ...]
    parts: Mapping[str, Part]
    preview: Preview | None = None
    golden: Golden | None = None
    embeddings: tuple[Word, ...] = ()
    zero_negative: bool = False  # no negative prompt means embeddings of zeros, as SDXL was trained
    clip_sample: float | None = None  # x0 estimates stay within plus or minus this, and noise estimates follow
    licence: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    foreign: Foreign | None = None

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The parts that read the prompt, one for each of ``text``."""
        return TEXT_ENCODERS[: len(self.text)]

    @property
    def needed(self) -> tuple[str, ...]:
        """The parts that every call runs."""
        return needed_parts(len(self.text), self.latent, self.inpaints)

    def unet_input(self, name: str) -> Tensor | None:
        """The U-Net's input of that name; None where it takes none."""
        return next((t for t in self.parts["unet"].inputs if t.name == name), None)

    @property
    def unet_channels(self) -> int:
        """How many channels the U-Net's sample has; as many as latents where the graph leaves them open."""
        return sample_channels(self.parts["unet"]) or self.latent.channels

    @property
    def inpaints(self) -> bool:
        """Whether the U-Net reads a mask and a masked picture beside the latents."""
        return self.unet_channels != self.latent.channels

    @property
    def embeds_guidance(self) -> bool:
        """Whether the U-Net takes the guidance scale as an input (LCM) and is never called without the prompt."""
        return self.unet_input("timestep_cond") is not None

    @property
    def fixed_size(self) -> tuple[int | None, int | None]:
        """The width and height in pixels that the U-Net is made for; None where any goes in."""
        shape = next(t.shape for t in self.parts["unet"].inputs if t.name == "sample")
        sides = [s * self.latent.factor if isinstance(s, int) else None for s in shape[2:4]]
        return (sides[1], sides[0]) if len(sides) == 2 else (None, None)

    @property
    def clip_skips(self) -> tuple[int, ...]:
        """The values of ``clip_skip`` that every text encoder offers besides 0."""
        offered = []
        for part in self.text_encoders:
            names = (SKIPPED_OUTPUT.fullmatch(t.name) for t in self.parts[part].outputs)
            offered.append({int(match[1]) for match in names if match})
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
        """The file's path, after it was found to lie inside the bundle and its size (and, when ``hashed``, its sha256)
        to be right.

        Raises:
            BundleNotFoundError: no such file.
            BundleError: a link out of the bundle, no regular file, another size or checksum than the manifest's.
        """
        whose = f"bundle {shown(self.name)}: {part}"
        try:
            path = confined(self.root, self.root / file.path)
            if not path.is_file():
                raise BundleNotFoundError(
                    f"bundle {shown(self.name)}: {part} needs {file.path}, which is not in {self.root}"
                )
            with open_regular(path) as opened:
                size = os.fstat(opened.fileno()).st_size
                digest = _digest(opened, size) if hashed and self.foreign is None and size == file.size else ""
        except BundleNotFoundError:
            raise
        except BundleError as error:
            raise BundleError(f"{whose}: {error}") from error
        except OSError as error:
            raise BundleError(f"{whose}: {file.path} cannot be read: {error}") from error
        if size != file.size:
            raise BundleError(
                f"{whose}: {file.path} has {size} bytes, the manifest says {file.size}"
                f"{f'; it is {wrong}' if (wrong := stand_in(path)) else ''}"
            )
        if digest and digest != file.sha256:
            raise BundleError(
                f"{whose}: {file.path} is damaged: its sha256 is {digest[:16]}..., the manifest says "
                f"{file.sha256[:16]}..."
            )
        return path


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with open_regular(path) as file:
        return _digest(file, os.fstat(file.fileno()).st_size)


def _digest(file: BinaryIO, size: int) -> str:
    """Of at most one byte more than ``size``: some special files have no end."""
    digest, left = hashlib.sha256(), size + 1
    while left and (piece := file.read(min(left, 1 << 20))):
        digest.update(piece)
        left -= len(piece)
    return digest.hexdigest()


def needed_parts(encoders: int, latent: Latent, inpaints: bool) -> tuple[str, ...]:
    """The parts that every call of such a model runs."""
    decoder = ("vae_decoder",) if latent.factor > 1 else ()
    return (*TEXT_ENCODERS[:encoders], "unet", *decoder, *(("vae_encoder",) if inpaints else ()))


def sample_channels(unet: Part) -> int | None:
    """Of the U-Net's sample, where they are fixed."""
    shape = next(t.shape for t in unet.inputs if t.name == "sample")
    return channels if len(shape) == 4 and isinstance(channels := shape[1], int) else None
