"""Prompt in, pictures out: ``load()``, ``pipe(...)`` and ``pipe.stream(...)``."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import bundle as bundles
from .engines import Engine, check_device, finite, open_part, require_finite
from .errors import ArgumentError, PromptError, PromptWarning, choices
from .image import to_pil, to_uint8
from .loop import LoopStep, run
from .rng import TorchCpuGenerator
from .samplers import SAMPLERS
from .table import Plan
from .tokenizer import Tokenizer
from .version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image

Float32 = NDArray[np.float32]
OUTPUT_TYPES = ("pil", "np", "latent")
MAX_SEED = 2**64 - 1
MAX_THREADS = 256


@dataclass(frozen=True)
class Request:
    """One checked call: every argument has a value and is known to be usable."""

    prompts: tuple[str, ...]  # one an image
    negatives: tuple[str, ...]
    ids: Mapping[str, NDArray[np.int64]]  # of every text above that the text encoder will read
    seeds: tuple[int, ...]
    plan: Plan
    width: int
    height: int
    latents: Float32 | None
    output_type: str


@dataclass(frozen=True)
class Step:
    """One step of a running stream."""

    index: int  # from 0
    total: int
    request: Request
    pipeline: Pipeline
    loop: LoopStep

    @property
    def latents(self) -> Float32:
        """The state after this step, (B, C, h, w) float32."""
        return self.loop.after

    @property
    def last(self) -> bool:
        return self.index + 1 == self.total

    def preview(self) -> list[Image]:
        """A cheap look at where each picture is heading: the x0 estimate through the bundle's latent-to-RGB matrix.

        Raises ``ArgumentError`` when the bundle has none.
        """
        return [to_pil(p) for p in self.pipeline.preview(self.loop.x0())]

    def decode(self) -> list[Image]:
        """The x0 estimate through the real decoder."""
        return [to_pil(p) for p in to_uint8(self.pipeline.decode(self.loop.x0()))]

    def result(self) -> Result:
        """The finished pictures; ``ArgumentError`` before the last step."""
        if not self.last:
            raise ArgumentError(f"step {self.index + 1} of {self.total} is not the last; use preview() or decode()")
        return self.pipeline.finish(self.request, self.latents)


@dataclass(frozen=True)
class Result:
    """Finished pictures: ``images`` holds Pillow images, or one array when ``output_type`` is np or latent."""

    images: Any
    latents: Float32
    seeds: tuple[int, ...]
    parameters: tuple[str, ...]


@dataclass
class Pipeline:
    """A bundle with engines around it. Made by ``load``; calls from several threads do not disturb each other."""

    bundle: bundles.Bundle
    device: str = "cpu"
    threads: int | None = None
    _engines: dict[str, Engine] = field(default_factory=dict, repr=False)
    _tokenizer: Tokenizer | None = field(default=None, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    def engine(self, part: str) -> Engine:
        """The part's engine, opened on first use."""
        with self._lock:
            if part not in self._engines:
                self._engines[part] = open_part(self.bundle, part, self.device, self.threads)
            return self._engines[part]

    def warm(self) -> Pipeline:
        """Open everything that a call needs now rather than at the first call."""
        self.tokenizer()
        for part in bundles.REQUIRED_PARTS:
            self.engine(part)
        return self

    def tokenizer(self) -> Tokenizer:
        with self._lock:
            if self._tokenizer is None:
                text = self.bundle.text[0]
                path = self.bundle.path("tokenizer", text.file)
                self._tokenizer = Tokenizer(path, text.max_length, text.pad_id)
            return self._tokenizer

    def __call__(self, prompt: str | Sequence[str], **arguments: Any) -> Result:
        """Make pictures. Arguments are those of ``stream``.

        >>> edgediff.save(edgediff.load()("a red apple", seed=7).images[0], "apple.png")
        """
        steps = self.stream(prompt, **arguments)
        for step in steps:
            pass
        return step.result()

    def stream(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        sampler: str | None = None,
        spacing: str | None = None,
        latents: Float32 | None = None,
        output_type: str = "pil",
    ) -> Iterator[Step]:
        """Yield a ``Step`` after every U-Net call; leaving the loop cancels. Arguments are checked before this returns.

        Args:
            prompt: one, or several for a batch.
            negative_prompt: what to steer away from; one for all or one a prompt.
            num_inference_steps, guidance_scale, height, width, sampler: the bundle's defaults when None.
            num_images_per_prompt: pictures of each prompt.
            seed: of the first image; image k has seed + k. A sequence gives each image its own. Random when None.
                Image k of a batch equals the single image with its seed.
            spacing: leading, trailing or linspace; the model's own when None.
            latents: starting noise (B, C, h, w) float32 of deviation 1, instead of the seed's.
            output_type: pil, np (uint8 (B, H, W, 3)) or latent.

        Raises:
            ArgumentError, PromptError: before any work starts.
            BundleError, EngineError: a part is damaged, cannot run, or gave values that are not finite.
        """
        request = self.check(
            prompt, negative_prompt, num_inference_steps, guidance_scale, height, width, num_images_per_prompt,
            seed, sampler, spacing, latents, output_type,
        )  # fmt: skip
        return self._run(request)

    def check(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None,
        num_inference_steps: int | None,
        guidance_scale: float | None,
        height: int | None,
        width: int | None,
        num_images_per_prompt: int,
        seed: int | Sequence[int] | None,
        sampler: str | None,
        spacing: str | None,
        latents: Float32 | None,
        output_type: str,
    ) -> Request:
        """The checked form of a call's arguments (see ``stream``)."""
        defaults, latent = self.bundle.defaults, self.bundle.latent
        prompts = _texts("prompt", prompt)
        if not prompts:
            raise PromptError("no prompt was given")
        for p in prompts:
            if not p.strip():
                raise PromptError(f"the prompt is {p!r}; it must be text that is not empty")
        negative_prompt = "" if negative_prompt is None else negative_prompt
        negatives = _texts("negative prompt", negative_prompt)
        if isinstance(negative_prompt, str):
            negatives *= len(prompts)
        if len(negatives) != len(prompts):
            raise PromptError(f"{len(prompts)} prompts need as many negative prompts; {len(negatives)} were given")
        per = _whole("num_images_per_prompt", num_images_per_prompt)
        height = _whole("height", defaults.height if height is None else height)
        width = _whole("width", defaults.width if width is None else width)
        for name, value in (("height", height), ("width", width)):
            if value > bundles.MAX_SIZE:
                raise ArgumentError(f"{name} is {value}; it must be at most {bundles.MAX_SIZE}")
            if value % latent.size_multiple:
                below = value // latent.size_multiple * latent.size_multiple
                near = [str(v) for v in (below, below + latent.size_multiple) if v]
                raise ArgumentError(
                    f"{name} is {value}; it must be a multiple of {latent.size_multiple}: try {' or '.join(near)}"
                )
        if output_type not in OUTPUT_TYPES:
            raise ArgumentError(f"no output_type {output_type!r}; choose from {choices(OUTPUT_TYPES)}")
        prompts = tuple(p for p in prompts for _ in range(per))
        negatives = tuple(n for n in negatives for _ in range(per))
        table = self.bundle.plan(sampler, num_inference_steps, guidance_scale, spacing)
        shape = (len(prompts), latent.channels, height // latent.factor, width // latent.factor)
        if latents is not None:
            if not isinstance(latents, np.ndarray) or latents.shape != shape:
                given = getattr(latents, "shape", type(latents).__name__)
                raise ArgumentError(f"latents have shape {given}; this call needs {shape}")
            latents = latents.astype(np.float32)
            if not np.isfinite(latents).all():
                raise ArgumentError("latents hold values that are not finite")
        seeds = _seeds(seed, len(prompts))
        ids = self._tokenize("prompt", prompts)
        if table.rows[0].guided:
            ids |= self._tokenize("negative prompt", negatives)
        return Request(prompts, negatives, ids, seeds, table, width, height, latents, output_type)

    def _tokenize(self, what: str, texts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        """Ids by text. Warns with the words that did not fit."""
        tokenizer = self.tokenizer()
        ids: dict[str, NDArray[np.int64]] = {}
        for text in dict.fromkeys(texts):
            ids[text], cut = tokenizer.encode(text)
            if cut:
                warnings.warn(
                    f"the {what} is longer than the {tokenizer.max_length - 2} tokens that this model reads; "
                    f"cut: {cut!r}",
                    PromptWarning,
                    stacklevel=4,  # the caller of stream()
                )
        return ids

    def _run(self, request: Request) -> Iterator[Step]:
        latent = self.bundle.latent
        shape = (1, latent.channels, request.height // latent.factor, request.width // latent.factor)
        streams = [TorchCpuGenerator(seed) for seed in request.seeds]

        def noise() -> Float32:
            return np.concatenate([s.randn(shape) for s in streams])

        table = request.plan
        guided = table.rows[0].guided
        context = self.encode([request.ids[p] for p in request.prompts])
        both = context
        if guided:
            both = np.concatenate([self.encode([request.ids[n] for n in request.negatives]), context])
        unet = self.engine("unet")
        x = noise() if request.latents is None else request.latents
        if table.start != 1.0:
            x = x * np.float32(table.start)

        def denoise(x: Float32, t: float, guided: bool) -> tuple[Float32 | None, Float32]:
            twice = np.concatenate([x, x]) if guided else x
            out = unet(
                sample=twice,
                timestep=np.full(len(twice), t, np.float32),
                encoder_hidden_states=both if guided else context,
            )["out_sample"]
            return (out[: len(x)], out[len(x) :]) if guided else (None, out)

        for k, step in enumerate(run(table, denoise, x, noise)):
            if not finite(step.after):
                for out in (step.c, step.u):
                    if out is not None:
                        require_finite("unet", out)
                require_finite(f"sampler {table.sampler}, step {k + 1},", step.after)
            yield Step(k, len(table.rows), request, self, step)

    def encode(self, ids: Sequence[NDArray[np.int64]]) -> Float32:
        """Token ids (max_length,) of each prompt -> text embeddings, float32 (B, tokens, width)."""
        unique = {row.tobytes(): row for row in ids}  # a prompt that stands more than once is encoded once
        out = self.engine("text_encoder")(input_ids=np.stack(list(unique.values())))["last_hidden_state"]
        require_finite("text_encoder", out)
        place = {key: k for k, key in enumerate(unique)}
        return out[[place[row.tobytes()] for row in ids]]

    def decode(self, latents: Float32) -> Float32:
        """Latents (B, C, h, w) -> pictures (B, 3, H, W), nominally in [-1, 1]."""
        latent = self.bundle.latent
        z = latents / np.float32(latent.scale) + np.float32(latent.shift)
        out = self.engine("vae_decoder")(latent_sample=z)["sample"]
        require_finite("vae_decoder", out)
        return out

    def preview(self, x0: Float32) -> NDArray[np.uint8]:
        """x0 -> uint8 (B, H, W, 3) by the bundle's linear fit, enlarged to the picture's size without smoothing."""
        fit = self.bundle.preview
        if fit is None:
            raise ArgumentError(f"bundle {self.bundle.name!r} has no preview matrix; use step.decode()")
        rgb = np.einsum("bchw,ck->bkhw", x0, np.asarray(fit.weight, np.float32))
        rgb += np.asarray(fit.bias, np.float32)[:, None, None]
        factor = self.bundle.latent.factor
        return to_uint8(rgb).repeat(factor, axis=1).repeat(factor, axis=2)

    def finish(self, request: Request, latents: Float32) -> Result:
        """Final latents -> the result that the request asked for."""
        parameters = tuple(self._parameters(request, k) for k in range(len(request.prompts)))
        images: Any = latents
        if request.output_type != "latent":
            images = to_uint8(self.decode(latents))
            if request.output_type == "pil":
                images = [to_pil(p, text) for p, text in zip(images, parameters, strict=True)]
        return Result(images, latents, request.seeds, parameters)

    def _parameters(self, request: Request, k: int) -> str:
        lines = [request.prompts[k]]
        if request.negatives[k]:
            lines.append(f"Negative prompt: {request.negatives[k]}")
        facts = {
            "Steps": len(request.plan.rows),
            "Sampler": SAMPLERS[request.plan.sampler].label,
            "Schedule type": request.plan.spacing,
            "CFG scale": f"{request.plan.guidance_scale:g}",
            "Seed": request.seeds[k],
            "Size": f"{request.width}x{request.height}",
            "Model hash": self.bundle.id,
            "Model": self.bundle.name,
            "Version": f"edgediff {__version__}",
        }
        if request.latents is not None and not request.plan.stochastic:
            del facts["Seed"]  # it did not matter
        lines.append(", ".join(f"{name}: {value}" for name, value in facts.items()))
        return "\n".join(lines)


def load(path: str | Path | None = None, *, device: str = "cpu", threads: int | None = None) -> Pipeline:
    """Open a bundle (the built-in emoji model when ``path`` is None). Engines open on first use, or by ``warm()``.

    Args:
        path: a bundle's folder.
        device: cpu.
        threads: CPU threads an engine may use; all physical cores when None.

    Raises:
        BundleError: the manifest is missing or malformed.
        ArgumentError: an unknown device, threads outside 1 .. 256.
    """
    check_device(device)
    if threads is not None and _whole("threads", threads) > MAX_THREADS:
        raise ArgumentError(f"threads is {threads}; it must be at most {MAX_THREADS}")
    if path is not None and not isinstance(path, (str, Path)):
        raise ArgumentError(f"path is {path!r}; it must be the path of a bundle's folder")
    return Pipeline(bundles.read(path), device, threads)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ArgumentError(f"{name} is {value!r}; it must be a whole number of at least 1")
    return int(value)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    for text in texts:
        if not isinstance(text, str):
            raise PromptError(f"the {name} is {text!r}; it must be text, or a list of texts")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise PromptError(f"the {name} {text!r} holds bytes that are not UTF-8 text") from error
    return texts


def _seeds(seed: int | Sequence[int] | None, count: int) -> tuple[int, ...]:
    if seed is None:
        import secrets

        first = secrets.randbits(32)  # short enough to type again
        return tuple((first + k) % 2**32 for k in range(count))
    seeds: tuple[Any, ...] = (seed,)
    if isinstance(seed, (int, np.integer)) and not isinstance(seed, bool):
        seeds = tuple(int(seed) + k for k in range(count))
    elif isinstance(seed, (list, tuple, range, np.ndarray)):
        seeds = tuple(seed)
        if len(seeds) != count:
            raise ArgumentError(f"{count} images need as many seeds; {len(seeds)} were given")
    for s in seeds:
        if isinstance(s, bool) or not isinstance(s, (int, np.integer)) or not 0 <= s <= MAX_SEED:
            raise ArgumentError(f"seed is {s!r}; it must be a whole number from 0 to {MAX_SEED}")
    return tuple(int(s) for s in seeds)
