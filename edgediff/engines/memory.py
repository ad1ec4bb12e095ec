"""What a call takes at least in memory, predicted before it begins.

The prediction is a lower bound. It is made of the manifest alone, from shapes and the sizes of files. Not counted:
memory of a GPU, of other providers and of engines from elsewhere, of attention that is not fused, of the text encoders'
and the VAE encoder's own work, and of weights in files of their own, whose pages the system can drop.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from math import isqrt

from ..bundle.manifest import FOREIGN, WEIGHTS, Bundle, Part

# Live at once at the peak of a call, measured (benchmarks/memory.py): arrays as wide as the first block, at its size.
UNET_LIVE, DECODER_LIVE = 16, 8
# The widths of first blocks, from below: of SDXL's U-Net, scaled by the root of the weights' number, and of a decoder
# that is a fifth narrower than Stable Diffusion's. None is taken to be wider than theirs.
UNET_WIDTH, UNET_WEIGHTS, UNET_WIDEST = 185, 860_000_000, 320
DECODER_WIDTH, DECODER_WEIGHTS, DECODER_WIDEST = 100, 49_500_000, 128
FLOAT = 4  # bytes of a number in work
STORED = {"fp16": 2, "fp16-weights": 2}  # bytes of a weight in a file; 4 at most
GENERATOR = 2_500  # bytes of a Mersenne twister, one an image
PIXEL = 30  # bytes: decoded, scaled, rounded twice and in a Pillow image
DRAWN_PIXEL = 6  # those that come from a device rounded


@dataclass(frozen=True)
class Demand:
    """A demand is what of a call its memory depends on; ``depth`` is the plan's history, and ``decodes`` whether
    pictures are wanted, or latents.
    """

    images: int
    width: int
    height: int
    guided: bool
    depth: int = 0
    decodes: bool = True


@dataclass(frozen=True)
class PartMemory:
    """Bytes that a part takes: its weights, and what it works with in a call."""

    weights: int
    activations: int


@dataclass(frozen=True)
class Estimate:
    """An estimate is what a call takes at least, in bytes of this process's memory: by part, and the call's arrays."""

    parts: Mapping[str, PartMemory]
    arrays: int

    def total(self, one_at_a_time: bool = False) -> int:
        """Bytes at the peak: engines keep what they worked with, unless parts are held one at a time."""
        sizes = [part.weights + part.activations for part in self.parts.values()]
        return self.arrays + (max(sizes, default=0) if one_at_a_time else sum(sizes))

    def beyond(self, opened: Collection[str], held: Mapping[str, int]) -> Estimate:
        """What comes to parts that are ``opened`` and work in what they ``held`` since earlier calls."""
        parts = {
            name: PartMemory(0 if name in opened else part.weights, max(0, part.activations - held.get(name, 0)))
            for name, part in self.parts.items()
        }
        return replace(self, parts=parts)


@dataclass(frozen=True)
class Resident:
    """What of a model is in this process's memory.

    Args:
        hosted: the parts that ONNX Runtime runs on the CPU; others take no memory that is known here.
        opened: those whose weights are in memory.
        held: bytes that engines keep from earlier calls, by part.
        one_at_a_time: whether parts are let go when the next is called.
        on_device: whether state and pictures are a device's until they are finished.
    """

    hosted: Collection[str]
    opened: Collection[str] = ()
    held: Mapping[str, int] = field(default_factory=dict)
    one_at_a_time: bool = False
    on_device: bool = False


def estimate(bundle: Bundle, demand: Demand, resident: Resident | None = None) -> Estimate:
    """What a call takes at least, of all parts that it runs, whether they are open or not.

    Args:
        resident: which parts count, and where the loop is; all parts, and the host's loop when None.
    """
    resident = Resident(bundle.needed) if resident is None else resident
    cells = demand.images, demand.height // bundle.latent.factor, demand.width // bundle.latent.factor
    parts = {}
    for name in bundle.needed:
        if name in resident.hosted:
            batch = (cells[0] * (2 if demand.guided else 1), *cells[1:]) if name == "unet" else cells
            idle = name == "vae_decoder" and not demand.decodes
            parts[name] = PartMemory(_inline(bundle.parts[name]), 0 if idle else activations(bundle, name, *batch))
    return Estimate(parts, _arrays(bundle, demand, resident.on_device))


def activations(bundle: Bundle, part: str, batch: int, height: int, width: int) -> int:
    """Bytes that a part works with at least in a call, for latents of ``height`` x ``width`` cells."""
    if bundle.foreign is not None and (most := bundle.foreign.parts[part].batch) is not None:
        batch = min(batch, most)
    if part == "unet":
        wide = _width(bundle.parts[part], UNET_WIDTH, UNET_WEIGHTS, UNET_WIDEST)
        return batch * height * width * wide * UNET_LIVE * FLOAT
    if part == "vae_decoder":
        wide = _width(bundle.parts[part], DECODER_WIDTH, DECODER_WEIGHTS, DECODER_WIDEST)
        return batch * height * width * bundle.latent.factor**2 * wide * DECODER_LIVE * FLOAT
    return 0


def _width(part: Part, width: int, weights: int, widest: int) -> int:
    """Channels of a part's first block, from the size of its files: weights grow with the square of the width."""
    graph = next((file for file in part.files if file.engine in ("onnx", FOREIGN)), None)
    if graph is None:
        return 1
    data = sum(file.size for file in part.files if file.engine == WEIGHTS and _belongs(file.path, graph.path))
    count = max(0, graph.size + data) // STORED.get(graph.precision, FLOAT)
    return max(1, min(widest, isqrt(width * width * count // weights)))


def _belongs(data: str, graph: str) -> bool:
    """Whether a file of weights is a graph's: ours lie beside it under its name, others' in its folder."""
    return data.startswith(graph) or graph.endswith("/model.onnx")


def _inline(part: Part) -> int:
    """Bytes of the weights that lie in the graph's own file, and so are read into memory."""
    return next((max(0, file.size) for file in part.files if file.engine in ("onnx", FOREIGN)), 0)


def _arrays(bundle: Bundle, demand: Demand, on_device: bool) -> int:
    """Bytes of a call's own arrays: texts, state, history, the U-Net's input and output, noise, pictures."""
    latent, images = bundle.latent, demand.images
    calls, area = (2 if demand.guided else 1), demand.height * demand.width
    cells = area // latent.factor**2
    state = images * latent.channels * cells * FLOAT
    texts, told = 0, bundle.unet_input("encoder_hidden_states")
    if told is not None and bundle.text and isinstance(wide := told.shape[-1], int):
        copies = 5 if demand.guided else 2  # each image's own, and stacked for both kinds of rows
        texts = images * copies * bundle.text[0].max_length * max(0, wide) * FLOAT
    pixels = images * area if demand.decodes else 0
    if on_device:
        return texts + state + images * GENERATOR + pixels * DRAWN_PIXEL
    unet = images * calls * (bundle.unet_channels + latent.channels) * cells * FLOAT
    loop = state * (2 + demand.depth) + unet
    return texts + images * GENERATOR + max(loop, state + pixels * PIXEL)
