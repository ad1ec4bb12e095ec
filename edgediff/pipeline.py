"""Prompt in, pictures out: ``load()``, ``pipe(...)`` and ``pipe.stream(...)``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from . import bundle as bundles
from .embeddings import Embeddings, read_embedding
from .engines import Engine, check_device, finite, open_part, require_finite
from .errors import ArgumentError, BundleError, choices
from .guidance import Apg, Hook
from .image import to_pil, to_uint8
from .loop import Denoise, LoopStep, run
from .prompt import emphasise
from .request import Arguments, Request, check, whole
from .rng import Generator
from .texts import Chunk
from .tokenizer import Tokenizer
from .version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image

Float32 = NDArray[np.float32]
MAX_THREADS = 256


@dataclass(frozen=True, repr=False)
class Step:
    """One U-Net call of a running stream; some samplers make two in most of their steps."""

    index: int  # from 0
    total: int
    request: Request
    pipeline: Pipeline
    loop: LoopStep

    def __repr__(self) -> str:
        return f"Step({self.index + 1} of {self.total})"

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


@dataclass(frozen=True, repr=False)
class Result:
    """Finished pictures: ``images`` holds Pillow images, or one array when ``output_type`` is np or latent."""

    images: Any
    latents: Float32
    seeds: tuple[int, ...]
    parameters: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Result({len(self.seeds)} images, seeds {self.seeds})"


@dataclass(repr=False)
class Pipeline:
    """A bundle with engines around it. Made by ``load``; calls from several threads do not disturb each other."""

    bundle: bundles.Bundle
    device: str = "cpu"
    threads: int | None = None
    _engines: dict[str, Engine] = field(default_factory=dict)
    _tokenizer: Tokenizer | None = None
    _embeddings: Embeddings | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __repr__(self) -> str:
        return f"Pipeline({self.bundle.name!r} {self.bundle.id}, {self.device})"

    def engine(self, part: str) -> Engine:
        """The part's engine, opened on first use."""
        with self._lock:
            if part not in self._engines:
                self._engines[part] = open_part(self.bundle, part, self.device, self.threads)
            return self._engines[part]

    def set_engine(self, part: str, engine: Engine) -> None:
        """Run a part by ``engine``, any function of named arrays, from the next call on.

        Raises ``ArgumentError`` for a part that the bundle does not have.
        """
        if part not in self.bundle.parts:
            raise ArgumentError(
                f"bundle {self.bundle.name!r} has no part {part!r}; choose from {choices(self.bundle.parts)}"
            )
        with self._lock:
            self._engines[part] = engine

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
        known = Arguments.__dataclass_fields__
        if unknown := [name for name in arguments if name not in known]:
            raise ArgumentError(f"no argument {unknown[0]!r}; choose from {choices(known)}")
        steps = self.stream(prompt, **arguments)
        for step in steps:
            pass
        return step.result()

    def load_textual_inversion(self, path: str | Path, token: str | None = None) -> str:
        """Let a word stand for learned vectors, from a safetensors file of A1111's or diffusers' form.

        Args:
            path: the file.
            token: the word; the file's own (diffusers) or its name (A1111) when None.

        Returns:
            The word. Calls that are running keep the vectors they started with.

        Raises:
            ArgumentError: a file that cannot be used, or vectors of another width than the text encoder's.
            BundleError: a bundle whose text encoder takes no further vectors (exported before there were any).
        """
        word, vectors = read_embedding(path)
        word = word if token is None else token
        with self._lock:
            width = self.bundle.embedding_width
            if width is None:
                raise BundleError(
                    f"the text encoder of bundle {self.bundle.name!r} has no input extra_embeddings; export it again"
                )
            self._embeddings = self.embeddings().add(word, vectors)
        return word

    def unload_textual_inversion(self, token: str) -> None:
        """Let the word be a word again."""
        with self._lock:
            self._embeddings = self.embeddings().remove(token)

    def embeddings(self) -> Embeddings:
        """The textual inversions that are loaded."""
        with self._lock:
            if self._embeddings is None:
                self._embeddings = Embeddings(self.bundle.embedding_width or 1)
            return self._embeddings

    def stream(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        sampler: str | None = None,
        spacing: str | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        eta: float | None = None,
        guidance: str | Apg = "cfg",
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        dynamic_thresholding_ratio: float | None = None,
        on_x0: Hook | None = None,
        rng: str | Callable[[int], Generator] = "torch-cpu",
        clip_skip: int = 0,
        prompt_syntax: str = "a1111",
        latents: Float32 | None = None,
        output_type: str = "pil",
    ) -> Iterator[Step]:
        """Yield a ``Step`` after every U-Net call; leaving the loop cancels. Arguments are checked before this returns.

        Args:
            prompt: one, or several for a batch. ``(word:1.2)`` weighs a word, ``(word)`` and ``[word]`` by 1.1 and
                1/1.1; a backslash before a bracket makes it text; BREAK begins a new chunk. Prompts longer than the
                text encoder are read in chunks.
            negative_prompt: what to steer away from; one for all or one a prompt.
            num_inference_steps, guidance_scale, height, width, sampler: the bundle's defaults when None.
                ``guidance_scale`` may be a list, one a step.
            num_images_per_prompt: pictures of each prompt.
            seed: of the first image; image k has seed + k. A sequence gives each image its own. Random when None.
                Image k of a batch equals the single image with its seed.
            sampler: our name, diffusers' class or A1111's label ("DPM++ 2M Karras"), see ``edgediff.plan``.
            spacing, timesteps, sigmas, eta, guidance_interval: see ``edgediff.plan``.
            guidance: cfg, cfg++ (``guidance_scale`` is then 0 .. 1), apg, or an ``Apg`` with its settings.
            guidance_rescale: share, 0 .. 1, by which the guided output's deviation is brought back (Lin et al. 2023).
            dynamic_thresholding_ratio: quantile, 0 .. 1, at which each channel of the guided x0 is clipped and scaled
                back to the range of the estimate without guidance (after Saharia et al. 2022); None for none.
            on_x0: called once a U-Net call with the x0 estimates, latents (B, C, h, w) float32; what it returns is
                used in their place.
            rng: torch-cpu or torch-cuda, whose noise the seeds give; or a function from a seed to a generator (see
                ``edgediff.rng``).
            clip_skip: how many of the text encoder's last layers to leave out, counted as in diffusers (A1111 counts
                one more), for both prompts.
            prompt_syntax: a1111, or plain, where every character is text.
            latents: starting noise (B, C, h, w) float32 of deviation 1, instead of the seed's.
            output_type: pil, np (uint8 (B, H, W, 3)) or latent.

        Raises:
            ArgumentError, PromptError: before any work starts.
            BundleError, EngineError: a part is damaged, cannot run, or gave values that are not finite.
        """
        given = dict(locals())
        del given["self"]
        request = check(self.bundle, self.tokenizer(), self.embeddings(), Arguments(**given), level=2)
        return self._run(request)

    def _run(self, request: Request) -> Iterator[Step]:
        latent, table = self.bundle.latent, request.plan
        shape = (1, latent.channels, request.height // latent.factor, request.width // latent.factor)
        streams = [request.generator(seed) for seed in request.seeds]

        def noise() -> Float32:
            return np.concatenate([s.randn(shape) for s in streams])

        denoise = self._denoiser(request)
        x = noise() if request.latents is None else request.latents
        if table.start != 1.0:
            x = x * np.float32(table.start)
        for k, step in enumerate(run(table, denoise, x, noise, request.combiner())):
            if not finite(step.after):
                for part, out in (("unet", step.c), ("unet", step.u), ("guidance", step.m)):
                    if out is not None:
                        require_finite(part, out)
                require_finite(f"sampler {table.sampler}, step {k + 1},", step.after)
            yield Step(k, len(table.rows), request, self, step)

    def _denoiser(self, request: Request) -> Denoise:
        """The U-Net on a request's prompts. Texts of several lengths go in several calls: padding one to the length of
        another would change its picture.
        """
        conditional = self.encode(request, request.prompts)
        both = [*self.encode(request, request.negatives), *conditional] if request.plan.guided else []
        grouped = {True: _by_length(both), False: _by_length(conditional)}
        unet = self.engine("unet")

        def denoise(x: Float32, t: float, guided: bool) -> tuple[Float32 | None, Float32]:
            sample = np.concatenate([x, x]) if guided else x
            out: Float32 | None = None
            for places, context in grouped[guided]:
                every = len(places) == len(sample)
                part = unet(
                    sample=sample if every else sample[places],
                    timestep=np.full(len(places), t, np.float32),
                    encoder_hidden_states=context,
                )["out_sample"]
                if every:
                    out = part
                else:
                    out = np.empty_like(sample) if out is None else out
                    out[places] = part
            assert out is not None  # a request has at least one prompt
            return (out[: len(x)], out[len(x) :]) if guided else (None, out)

        return denoise

    def encode(self, request: Request, prompts: Sequence[str]) -> list[Float32]:
        """The text embeddings of each prompt, float32 (tokens, width): chunk after chunk, weighted."""
        chunks: dict[bytes, Chunk] = {c.key: c for p in prompts for c in request.texts[p].chunks}
        inputs: dict[str, NDArray[Any]] = {"input_ids": np.stack([c.ids for c in chunks.values()])}
        if self.bundle.embedding_width is not None:
            inputs["extra_embeddings"] = request.embeddings.table
        skip = request.arguments.clip_skip
        name = f"hidden_state_{skip}" if skip else "last_hidden_state"
        out = self.engine("text_encoder")(**inputs)[name]
        require_finite("text_encoder", out)
        hidden = dict(zip(chunks, out, strict=True))
        return [np.concatenate([emphasise(hidden[c.key], c.weights) for c in request.texts[p].chunks]) for p in prompts]

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
        if request.arguments.output_type != "latent":
            images = to_uint8(self.decode(latents))
            if request.arguments.output_type == "pil":
                images = [to_pil(p, text) for p, text in zip(images, parameters, strict=True)]
        return Result(images, latents, request.seeds, parameters)

    def _parameters(self, request: Request, k: int) -> str:
        lines = [request.prompts[k]]
        if request.negatives[k]:
            lines.append(f"Negative prompt: {request.negatives[k]}")
        table, given = request.plan, request.arguments
        scale = table.guidance_scale
        facts: dict[str, Any] = {
            "Steps": table.intervals,
            "Sampler": table.label,
            "Schedule type": table.spacing,
            "CFG scale": f"{scale:g}" if isinstance(scale, float) else " ".join(f"{g:g}" for g in scale),
            "Seed": request.seeds[k],
            "Size": f"{request.width}x{request.height}",
            "Model hash": self.bundle.id,
            "Model": self.bundle.name,
        }
        for name, value in (
            ("Eta", given.eta),
            ("Guidance", None if given.guidance == "cfg" else str(given.guidance).replace(", ", " ")),
            ("Guidance interval", given.guidance_interval and "{:g} to {:g}".format(*given.guidance_interval)),
            ("Guidance rescale", given.guidance_rescale or None),
            ("Dynamic thresholding", given.dynamic_thresholding_ratio),
            ("Clip skip", given.clip_skip + 1 if given.clip_skip else None),  # A1111's count
            ("RNG", None if given.rng == "torch-cpu" else given.rng if isinstance(given.rng, str) else "custom"),
            ("Timesteps", None if given.timesteps is None else " ".join(f"{v:g}" for v in given.timesteps)),
            ("Sigmas", None if given.sigmas is None else " ".join(f"{v:g}" for v in given.sigmas)),
            ("Prompt syntax", None if given.prompt_syntax == "a1111" else given.prompt_syntax),
            ("TI hashes", request.embeddings.hashes(request.prompts[k] + " " + request.negatives[k]) or None),
            ("Hook", None if given.on_x0 is None else "on_x0"),
        ):
            if value is not None:
                facts[name] = value
        facts["Version"] = f"edgediff {__version__}"
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
    if threads is not None and whole("threads", threads) > MAX_THREADS:
        raise ArgumentError(f"threads is {threads}; it must be at most {MAX_THREADS}")
    if path is not None and not isinstance(path, (str, Path)):
        raise ArgumentError(f"path is {path!r}; it must be the path of a bundle's folder")
    return Pipeline(bundles.read(path), device, threads)


def _by_length(contexts: Sequence[Float32]) -> list[tuple[NDArray[np.intp], Float32]]:
    """Contexts (tokens, width) of equal length together: their places, and (B, tokens, width)."""
    lengths = sorted({len(c) for c in contexts})
    places = [np.array([k for k, c in enumerate(contexts) if len(c) == n]) for n in lengths]
    return [(some, np.stack([contexts[k] for k in some])) for some in places]
