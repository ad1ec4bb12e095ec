"""A profile says which shapes a TensorRT engine takes; it is made from a bundle's symbolic shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...bundle.bounds import MAX_SIZE
from ...bundle.manifest import Bundle
from ...checks import is_whole
from ...errors import ArgumentError, EngineError

Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]  # of each input: least, best and largest shape
CHUNKS = 3  # of text: 77 .. 231 tokens
EXTRA = 64  # vectors of textual inversions
MAX_IMAGES = 64


@dataclass(frozen=True)
class Ranges:
    """Ranges say what requests an engine must serve.

    Args:
        images: most pictures at once; with guidance the U-Net's batch is twice that.
        least, best, most: (width, height) in pixels; an engine is fastest at ``best``. The bundle's default size, and
            half and one and a half of it, when None.
        chunks: most chunks of text a prompt.

    Raises:
        ArgumentError: a number out of range.
    """

    images: int = 1
    least: tuple[int, int] | None = None
    best: tuple[int, int] | None = None
    most: tuple[int, int] | None = None
    chunks: int = CHUNKS

    def __post_init__(self) -> None:
        for name, most in (("images", MAX_IMAGES), ("chunks", 16)):
            value = getattr(self, name)
            if not is_whole(value, 1, most):
                raise ArgumentError(f"{name} is {value!r}; it must be 1 .. {most}")
            object.__setattr__(self, name, int(value))  # JSON takes no scalar of NumPy's

    def sizes(self, bundle: Bundle) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Return least, best and largest (width, height); ``ArgumentError`` for no multiples, or another order."""
        step, default = bundle.latent.size_multiple, (bundle.defaults.width, bundle.defaults.height)
        best = self.best or default

        def near(share: float) -> tuple[int, int]:
            width, height = (max(step, int(v * share) // step * step) for v in best)
            return width, height

        three = self.least or near(0.5), best, self.most or near(1.5)
        for size in three:
            if len(size) != 2 or any(not isinstance(v, int) or v % step or not step <= v <= MAX_SIZE for v in size):
                raise ArgumentError(
                    f"size {'x'.join(map(str, size))}: both must be multiples of {step}, {step} .. {MAX_SIZE}"
                )
        if not all(a <= b <= c for a, b, c in zip(*three, strict=True)):
            text = ", ".join(f"{w}x{h}" for w, h in three)
            raise ArgumentError(f"sizes {text}: the least must not be above the best, nor that above the largest")
        return three


def profile(bundle: Bundle, part: str, ranges: Ranges) -> dict[str, tuple[Shape, Shape, Shape]]:
    """Return the profile of a part's inputs.

    Raises:
        ArgumentError: sizes that the model cannot take.
        EngineError: an input with a symbolic dimension of unknown meaning.
    """
    sizes, factor = ranges.sizes(bundle), bundle.latent.factor
    batch = _batch(bundle, part, ranges)
    tokens = bundle.text[0].max_length if bundle.text else 0
    chunks = min(ranges.chunks, bundle.max_chunks or ranges.chunks)
    known: dict[str, tuple[int, ...]] = {
        "batch": batch,
        "width": tuple(w for w, _ in sizes),
        "height": tuple(h for _, h in sizes),
        "latent_width": tuple(w // factor for w, _ in sizes),
        "latent_height": tuple(h // factor for _, h in sizes),
        "tokens": (tokens, tokens, chunks * tokens),
        "extra": (1, 1, EXTRA),  # engines refuse empty inputs; there is always a row
    }
    out = {}
    for tensor in bundle.parts[part].inputs:
        for size in tensor.shape:
            if isinstance(size, str) and size not in known:
                raise EngineError(f"{part}: input {tensor.name} has a dimension {size!r} of unknown meaning")
        least, best, most = (
            tuple(known[size][k] if isinstance(size, str) else size for size in tensor.shape) for k in range(3)
        )
        out[tensor.name] = (least, best, most)
    return out


def _batch(bundle: Bundle, part: str, ranges: Ranges) -> tuple[int, int, int]:
    images = ranges.images
    if part in bundle.text_encoders:
        return 1, 2, 2 * images * ranges.chunks
    guided = part == "unet" and not bundle.embeds_guidance and bool(bundle.text)
    most = 2 * images if guided else images
    return 1, most if bundle.defaults.guidance_scale > 1 else images, most


def why_not_shapes(profile: Profile, shapes: Mapping[str, Shape]) -> str:
    """Tell why an engine of this profile does not take these inputs, or an empty string."""
    for name, shape in shapes.items():
        least, _, most = profile[name]
        if len(shape) != len(least) or not all(a <= v <= b for a, v, b in zip(least, shape, most, strict=True)):
            return f"{name} is {list(shape)}, and the engine takes {list(least)} .. {list(most)}"
    return ""
