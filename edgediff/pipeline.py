"""Prompt in, pictures out: ``load()``, ``pipe(...)`` and ``pipe.stream(...)``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Float32, finite, require_finite
from .bundle.manifest import Bundle
from .bundle.reading import read_bundle
from .device.base import Device
from .device.cuda import CudaDevice
from .device.loop import DeviceStep
from .engines.base import Engine, EngineOptions, Provider, check_device, default_engine_cache
from .engines.choose import Parts, check_engine
from .errors import ArgumentError, BundleError, EngineError, choices
from .generation.arguments import Arguments
from .generation.conditioning import Condition, embed_guidance, stacked
from .generation.device_runner import DEPTH, ROWS, DeviceRunner, RunnerPool
from .generation.masks import channels
from .generation.request import Request, check, whole
from .image import to_pil, to_uint8
from .prompts.chunks import Chunk
from .prompts.textual_inversion import Embeddings, read_embedding
from .prompts.tokenizer import Tokenizer
from .prompts.weights import emphasise
from .sampling.guidance import Apg, Hook
from .sampling.loop import Denoise, LoopStep, run
from .sampling.rng import Generator
from .version import __version__

if TYPE_CHECKING:
    from PIL.Image import Image

    from .engines.background_build import Build
    from .engines.tensorrt.options import BuildOptions

MAX_THREADS = 256
PREVIEWS = ("decoder", "matrix")


@dataclass(frozen=True, repr=False)
class Step:
    """One U-Net call of a running stream; some samplers make two in most of their steps."""

    index: int  # from 0
    total: int
    request: Request
    pipeline: Pipeline
    loop: LoopStep | DeviceStep
    runner: DeviceRunner | None = None  # on a device

    def __repr__(self) -> str:
        return f"Step({self.index + 1} of {self.total})"

    @property
    def latents(self) -> Float32:
        """The state after this step, (B, C, h, w) float32."""
        return self.loop.after

    @property
    def last(self) -> bool:
        return self.index + 1 == self.total

    def preview(self, how: str | None = None) -> list[Image]:
        """A cheap look at where each picture is heading: the x0 estimate by the bundle's tiny decoder (``how``
        decoder), or by its latent-to-RGB matrix (matrix); the first that the bundle has when None.

        Raises ``ArgumentError`` when the bundle has none.
        """
        return [to_pil(p) for p in self.pipeline.preview(self.loop.x0(), how)]

    def decode(self) -> list[Image]:
        """The x0 estimate through the real decoder."""
        return [to_pil(p) for p in to_uint8(self.pipeline.decode(self.loop.x0()))]

    def result(self) -> Result:
        """The finished pictures; ``ArgumentError`` before the last step."""
        if not self.last:
            raise ArgumentError(f"step {self.index + 1} of {self.total} is not the last; use preview() or decode()")
        pictures = None
        if self.runner is not None and self.request.arguments.output_type != "latent":
            pictures = self.pipeline.draw(self.runner, self.loop)
        return self.pipeline.finish(self.request, self.latents, pictures)


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

    bundle: Bundle
    device: str = "cpu"
    wish: EngineOptions = field(default_factory=EngineOptions)
    build: Build | None = None  # of TensorRT engine files, in the background; None where there is none
    _device: Device | None = None
    _parts: Parts | None = None
    _runners: RunnerPool = field(default_factory=RunnerPool)
    _tokenizers: tuple[Tokenizer, ...] | None = None
    _embeddings: Embeddings | None = None
    _closed: bool = False
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __repr__(self) -> str:
        return f"Pipeline({self.bundle.name!r} {self.bundle.id}, {self.device})"

    @property
    def parts(self) -> Parts:
        """The engines that the next call begins with."""
        with self._lock:
            if self._closed:
                raise ArgumentError("this pipeline is closed; load() another")
            if self._parts is None:
                self._parts = Parts(self.bundle, self.wish, self._device)
            return self._parts

    def engine(self, part: str, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Engine:
        """The part's engine, for inputs of these shapes where they matter; opened on first use."""
        return self.parts.pick(part, shapes)

    def set_engine(self, part: str, engine: Engine) -> None:
        """Run a part by ``engine``, any function of named arrays, from the next call on.

        Raises ``ArgumentError`` for a part that the bundle does not have.
        """
        if part not in self.bundle.parts:
            raise ArgumentError(
                f"bundle {self.bundle.name!r} has no part {part!r}; choose from {choices(self.bundle.parts)}"
            )
        self._change(lambda parts: parts.with_engine(part, engine))

    def _change(self, how: Callable[[Parts], Parts]) -> None:
        """Other engines from the next call on; those that run keep theirs."""
        with self._lock:
            self._parts = how(self.parts)
        self._runners.clear()

    def _serving(self) -> Pipeline:
        """The pipeline as one call sees it. While engine files are built, ONNX Runtime serves; where it cannot,
        they are waited for.
        """
        if self.build is not None and self.build.running:
            try:
                for part in self.bundle.needed:
                    self.engine(part)
            except EngineError:
                self.build.wait()
        return replace(self, _parts=self.parts)

    def build_engines(
        self, build_options: BuildOptions | None = None, command: Sequence[str] | None = None
    ) -> Build | None:
        """Build TensorRT engine files in the background for the parts that have none, the U-Net's first; each serves
        from the next call after it is ready. ``build.errors`` holds what failed (there may be no TensorRT here): those
        parts stay with ONNX Runtime.

        Raises:
            ArgumentError: not on a CUDA device.
        """
        from .engines.background_build import build_missing

        if self._device is None:
            raise ArgumentError(f"device is {self.device!r}; TensorRT engines need cuda")
        if self.build is None or not self.build.running:
            ordinal, options = self._device.ordinal, self.parts.options
            self.build = build_missing(self.bundle, ordinal, options, self._take, build_options, command) or self.build
        return self.build

    def _take(self, part: str) -> None:
        """Run a part by the engine file that was built, from the next call on."""
        engine = self.parts.open_by("tensorrt", part)  # takes seconds; calls go on
        self._change(lambda parts: parts.with_opened("tensorrt", part, engine))

    def close(self) -> None:
        """Stop building, wait for the GPU and give back its memory and the engines; calls are refused afterwards. A
        pipeline is a context manager that does so at its end.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self.build is not None:
            self.build.cancel()
            self.build.wait()
        self._runners.clear()
        self._parts = None
        if self._device is not None:
            self._device.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def warm(self) -> Pipeline:
        """Open everything that a call needs now rather than at the first call."""
        self.tokenizers()
        for part in self.bundle.needed:
            self.engine(part)
        return self

    def tokenizers(self) -> tuple[Tokenizer, ...]:
        """One a text encoder."""
        with self._lock:
            if self._tokenizers is None:
                self._tokenizers = tuple(
                    Tokenizer(self.bundle.path("tokenizer", t.file), t.max_length, t.pad_id) for t in self.bundle.text
                )
            return self._tokenizers

    def __call__(self, prompt: str | Sequence[str] = "", **arguments: Any) -> Result:
        """Make pictures. Arguments are those of ``stream``.

        >>> edgediff.save(edgediff.load()("a red apple", seed=7).images[0], "apple.png")
        """
        known = Arguments.__dataclass_fields__
        if unknown := [name for name in arguments if name not in known]:
            raise ArgumentError(f"no argument {unknown[0]!r}; choose from {choices(known)}")
        for step in self.stream(prompt, **arguments):
            if step.last:
                return step.result()
        raise AssertionError("a plan has at least one row")

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
            if self.bundle.embedding_widths is None:
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
        """The textual inversions that are loaded; at first those that come with the bundle."""
        with self._lock:
            if self._embeddings is None:
                found = Embeddings(self.bundle.embedding_widths or ())
                for carried in self.bundle.embeddings:
                    path = self.bundle.path("embedding", carried.file)
                    try:
                        found = found.add(carried.word, read_embedding(path)[1])
                    except ArgumentError as error:
                        raise BundleError(f"bundle {self.bundle.name!r}: embeddings: {error}") from error
                self._embeddings = found
            return self._embeddings

    def stream(
        self,
        prompt: str | Sequence[str] = "",
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
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] | None = None,
        target_size: tuple[int, int] | None = None,
        aesthetic_score: float | None = None,
        negative_aesthetic_score: float | None = None,
        image: Any = None,
        mask_image: Any = None,
        prompt_syntax: str = "a1111",
        latents: Float32 | None = None,
        output_type: str = "pil",
    ) -> Iterator[Step]:
        """Yield a ``Step`` after every U-Net call; leaving the loop cancels. Arguments are checked before this returns.

        Args:
            prompt: one, or several for a batch. ``(word:1.2)`` weighs a word, ``(word)`` and ``[word]`` by 1.1 and
                1/1.1; a backslash before a bracket makes it text; BREAK begins a new chunk. Prompts longer than the
                text encoder are read in chunks. Models without a text encoder take none.
            negative_prompt: what to steer away from; one for all or one a prompt. None and "" differ for models that
                were trained with zeros for no prompt (SDXL).
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
                ``edgediff.sampling.rng``).
            clip_skip: how many of the text encoder's last layers to leave out, counted as in diffusers (A1111 counts
                one more), for both prompts.
            original_size, crops_coords_top_left, target_size: SDXL's (height, width) and (top, left) in pixels; the
                picture's size and (0, 0) when None.
            aesthetic_score, negative_aesthetic_score: of SDXL's refiner; 6.0 and 2.5 when None.
            image, mask_image: for inpainting models: a Pillow image, uint8 array or path each; white in the mask is
                drawn anew.
            prompt_syntax: a1111, or plain, where every character is text.
            latents: starting noise (B, C, h, w) float32 of deviation 1, instead of the seed's.
            output_type: pil, np (uint8 (B, H, W, 3)) or latent.

        Raises:
            ArgumentError, PromptError: before any work starts.
            BundleError, EngineError: a part is damaged, cannot run, or gave values that are not finite.
        """
        given = dict(locals())
        del given["self"]
        request = check(self.bundle, self.tokenizers(), self.embeddings(), Arguments(**given), level=2)
        return self._serving()._run(request)

    def _run(self, request: Request) -> Iterator[Step]:
        latent, table = self.bundle.latent, request.plan
        shape = (1, latent.channels, request.height // latent.factor, request.width // latent.factor)
        streams = [request.generator(seed) for seed in request.seeds]

        def noise() -> Float32:
            return np.concatenate([s.randn(shape) for s in streams])

        masked, x = request.masked, request.latents
        conditional = self.encode(request, request.prompts)
        both = [*self.encode(request, request.negatives, True), *conditional] if table.guided else []
        on_device = self._fits_the_device(request, conditional, both)
        if x is None and (masked is not None or not on_device):
            x = noise()
        extra = None
        if masked is not None:  # its noise comes after the latents', as in diffusers
            extra = channels(masked, latent, self.encode_picture, noise, len(streams))
        if on_device:
            whole = (len(streams), *shape[1:])
            yield from self._run_on_device(request, whole, streams, x, conditional, both, extra)
            return
        assert x is not None
        denoise = self._denoiser(request, conditional, both, extra)
        if table.start != 1.0:
            x = x * np.float32(table.start)
        for k, step in enumerate(run(table, denoise, x, noise, request.combiner())):
            if not finite(step.after):
                for part, out in (("unet", step.c), ("unet", step.u), ("guidance", step.m)):
                    if out is not None:
                        require_finite(part, out)
                require_finite(f"sampler {table.sampler}, step {k + 1},", step.after)
            yield Step(k, len(table.rows), request, self, step)

    def _fits_the_device(self, request: Request, conditional: Sequence[Condition], both: Sequence[Condition]) -> bool:
        """Whether the device loop can run this: guidance in the rows, texts of one length, an engine that enqueues."""
        return (
            self._device is not None
            and request.combiner() is None
            and len({0 if c.hidden is None else len(c.hidden) for c in (*conditional, *both)}) == 1
            and hasattr(self.engine("unet", self._shapes(request, both or conditional)), "enqueue")
        )

    def _shapes(self, request: Request, conditions: Sequence[Condition]) -> dict[str, tuple[int, ...]]:
        """Of the U-Net's inputs, in a call of this batch."""
        count, factor = len(conditions), self.bundle.latent.factor
        sample = self.bundle.unet_input("sample")
        assert sample is not None
        channels = sample.shape[1] if isinstance(sample.shape[1], int) else self.bundle.latent.channels
        others = {**stacked(conditions), **self._guidance_input(request, count)}
        return {
            "sample": (count, channels, request.height // factor, request.width // factor),
            "timestep": (count,),
            **{name: values.shape for name, values in others.items()},
        }

    def _run_on_device(
        self,
        request: Request,
        shape: tuple[int, int, int, int],
        streams: Sequence[Generator],
        x: Float32 | None,
        conditional: Sequence[Condition],
        both: Sequence[Condition],
        extra: Float32 | None,
    ) -> Iterator[Step]:
        table, device = request.plan, self._device
        assert device is not None
        room = max(ROWS, 1 << (len(table.rows) - 1).bit_length())
        unet: Any = self.engine("unet", self._shapes(request, both or conditional))

        def make() -> DeviceRunner:
            return DeviceRunner(device, self.bundle, unet, shape, room, DEPTH)

        told = self._guidance_input(request, len(streams))
        inputs = {**stacked(conditional), **told}
        others = {**stacked(both[: len(streams)]), **told} if both else None
        with self._runners.borrow((shape, room, id(unet)), make) as runner:
            for k, step in enumerate(runner.run(table, streams, x, inputs, others, extra)):
                yield Step(k, len(table.rows), request, self, step, runner)
            step.settle()

    def _guidance_input(self, request: Request, count: int) -> dict[str, Float32]:
        taken = self.bundle.unet_input("timestep_cond")
        if request.guidance_embedding is None or taken is None:
            return {}
        return {
            "timestep_cond": embed_guidance(request.guidance_embedding, int(taken.shape[-1]))[None].repeat(count, 0)
        }

    def _denoiser(
        self,
        request: Request,
        conditional: Sequence[Condition],
        both: Sequence[Condition],
        extra: Float32 | None,
    ) -> Denoise:
        """The U-Net on a request's prompts, ``extra`` channels beside each image's. Texts of several lengths go in
        several calls: padding one to the length of another would change its picture.
        """
        grouped = {True: _by_length(both), False: _by_length(conditional)}

        def denoise(x: Float32, t: float, guided: bool) -> tuple[Float32 | None, Float32]:
            sample = x if extra is None else np.concatenate([x, extra], axis=1)
            sample = np.concatenate([sample, sample]) if guided else sample
            out: Float32 | None = None
            for places, inputs in grouped[guided]:
                every = len(places) == len(sample)
                part = self._call(
                    "unet",
                    sample=sample if every else sample[places],
                    timestep=np.full(len(places), t, np.float32),
                    **inputs,
                    **self._guidance_input(request, len(places)),
                )["out_sample"]
                if every:
                    out = part
                else:
                    out = np.empty((len(sample), *x.shape[1:]), np.float32) if out is None else out
                    out[places] = part
            assert out is not None  # a request has at least one prompt
            return (out[: len(x)], out[len(x) :]) if guided else (None, out)

        return denoise

    def _call(self, part: str, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return self.engine(part, {name: values.shape for name, values in inputs.items()})(**inputs)

    def encode(self, request: Request, prompts: Sequence[str], negative: bool = False) -> list[Condition]:
        """What the U-Net reads of each prompt: of every text encoder the states (tokens, width), chunk after chunk,
        weighted, side by side; and the last one's pooled state of the first chunk, where it is wanted.
        """
        hidden: list[list[Float32]] = [[] for _ in prompts]
        pooled: list[Float32 | None] = [None] * len(prompts)
        for k, part in enumerate(self.bundle.text_encoders):
            texts = [request.texts[p][k] for p in prompts]
            chunks: dict[bytes, Chunk] = {c.key: c for text in texts for c in text.chunks}
            inputs: dict[str, NDArray[Any]] = {"input_ids": np.stack([c.ids for c in chunks.values()])}
            if self.bundle.embedding_widths is not None:
                inputs["extra_embeddings"] = request.embeddings.tables[k]
            out = self._call(part, **inputs)
            skip = request.arguments.clip_skip
            states = out[f"hidden_state_{skip}" if skip else "last_hidden_state"]
            require_finite(part, states)
            by_chunk = dict(zip(chunks, states, strict=True))
            for some, text in zip(hidden, texts, strict=True):
                some.append(np.concatenate([emphasise(by_chunk[c.key], c.weights) for c in text.chunks]))
            if "text_embeds" in out:
                require_finite(part, out["text_embeds"])
                first = dict(zip(chunks, out["text_embeds"], strict=True))
                pooled = [first[text.chunks[0].key] for text in texts]
        if self.bundle.unet_input("text_embeds") is None:
            pooled = [None] * len(prompts)
        sizes = request.sizes.negative if negative else request.sizes.positive
        blank = negative and self.bundle.zero_negative and request.arguments.negative_prompt is None
        return [
            Condition(
                _zeros(np.concatenate(some, axis=1), blank) if some else None,
                None if one is None else _zeros(one, blank),
                sizes,
            )
            for some, one in zip(hidden, pooled, strict=True)
        ]

    def encode_picture(self, picture: Float32) -> tuple[Float32, Float32 | None]:
        """Pictures (B, 3, H, W) in [-1, 1] -> mean and log variance of their latents (B, C, h, w), unscaled; the second
        is None for encoders without spread.
        """
        out = self._call("vae_encoder", sample=picture)
        for name in out:
            require_finite("vae_encoder", out[name])
        return out["latent_mean"], out.get("latent_logvar")

    def decode(self, latents: Float32) -> Float32:
        """Latents (B, C, h, w) -> pictures (B, 3, H, W), nominally in [-1, 1]."""
        return self._decode(latents, "vae_decoder")

    def _decode(self, latents: Float32, part: str) -> Float32:
        latent = self.bundle.latent
        if latent.factor == 1:
            return latents  # they are pixels
        z = latents / np.float32(latent.scale) + np.float32(latent.shift)
        out = self._call(part, latent_sample=z)["sample"]
        require_finite(part, out)
        return out

    def preview(self, x0: Float32, how: str | None = None) -> NDArray[np.uint8]:
        """x0 -> uint8 (B, H, W, 3) by the bundle's tiny decoder, or by its linear fit, enlarged to the picture's size
        without smoothing.
        """
        if how not in (None, *PREVIEWS):
            raise ArgumentError(f"no preview {how!r}; choose from {choices(PREVIEWS)}")
        small = "preview_decoder" in self.bundle.parts
        if how == "decoder" and not small:
            raise ArgumentError(f"bundle {self.bundle.name!r} has no preview_decoder; use matrix, or step.decode()")
        if self.bundle.latent.factor == 1 or (small and how != "matrix"):
            return to_uint8(self._decode(x0, "preview_decoder"))
        fit = self.bundle.preview
        if fit is None:
            raise ArgumentError(f"bundle {self.bundle.name!r} has no preview matrix; use step.decode()")
        rgb = np.einsum("bchw,ck->bkhw", x0, np.asarray(fit.weight, np.float32))
        rgb += np.asarray(fit.bias, np.float32)[:, None, None]
        factor = self.bundle.latent.factor
        return to_uint8(rgb).repeat(factor, axis=1).repeat(factor, axis=2)

    def draw(self, runner: DeviceRunner, step: Any) -> NDArray[np.uint8] | None:
        """The pictures of a runner's last step, drawn on the device; None where that cannot be, or not any more."""
        if self.bundle.latent.factor == 1:
            return None
        decoder: Any = self.engine("vae_decoder", {"latent_sample": runner.loop.shape})
        return runner.draw(step, decoder) if hasattr(decoder, "enqueue") else None

    def finish(self, request: Request, latents: Float32, pictures: NDArray[np.uint8] | None = None) -> Result:
        """Final latents -> the result that the request asked for; ``pictures`` (B, H, W, 3) are those already drawn."""
        parameters = tuple(self._parameters(request, k) for k in range(len(request.prompts)))
        images: Any = latents
        if request.arguments.output_type != "latent":
            images = to_uint8(self.decode(latents)) if pictures is None else pictures
            if request.arguments.output_type == "pil":
                images = [to_pil(p, text) for p, text in zip(images, parameters, strict=True)]
        return Result(images, latents, request.seeds, parameters)

    def _parameters(self, request: Request, k: int) -> str:
        lines = [request.prompts[k]]
        if request.negatives[k]:
            lines.append(f"Negative prompt: {request.negatives[k]}")
        table, given = request.plan, request.arguments
        scale = table.guidance_scale if request.guidance_embedding is None else request.guidance_embedding
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
            ("Original size", given.original_size and "{}x{}".format(*given.original_size[::-1])),
            ("Crop", given.crops_coords_top_left and "{} {}".format(*given.crops_coords_top_left)),
            ("Target size", given.target_size and "{}x{}".format(*given.target_size[::-1])),
            ("Aesthetic score", given.aesthetic_score),
            ("Negative aesthetic score", given.negative_aesthetic_score),
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
        if request.latents is not None and not request.plan.stochastic and request.masked is None:
            del facts["Seed"]  # it did not matter
        lines.append(", ".join(f"{name}: {value}" for name, value in facts.items()))
        return "\n".join(lines)


def load(
    path: str | Path | None = None,
    *,
    device: str = "cpu",
    engine: str | None = None,
    threads: int | None = None,
    providers: Sequence[Provider] | None = None,
    engine_cache: str | Path | None = None,
    build_options: BuildOptions | None = None,
) -> Pipeline:
    """Open a bundle (the built-in emoji model when ``path`` is None). Engines open on first use, or by ``warm()``.

    Args:
        path: a bundle's folder.
        device: cpu, cuda, or cuda:N. On CUDA the U-Net's loop stays on the GPU, but for guidance that is not linear and
            for batches with texts of several lengths.
        engine: onnx (ONNX Runtime), tensorrt (engine files that were built before, by ``edgediff build``), or auto:
            those that are missing are built in the background while ONNX Runtime serves, and take over between calls
            (``pipe.build`` tells how far that is). None: an engine file where there is one, else ONNX Runtime.
        threads: CPU threads an engine may use; all physical cores when None.
        providers: ONNX Runtime's execution providers, by name or as (name, options), in place of the device's own, for
            example ``[("OpenVINOExecutionProvider", {"device_type": "GPU"})]``.
        engine_cache: the folder of TensorRT engine files; ``$EDGEDIFF_CACHE`` or the user's cache folder when None.
        build_options: how auto builds engine files.

    Raises:
        BundleError: the manifest is missing or malformed.
        ArgumentError: an unknown device or engine, threads outside 1 .. 256, providers of another form.
        EngineError: a CUDA device that cannot be used; the message says why.
    """
    ordinal = check_device(device)
    check_engine(engine, ordinal)
    _check_providers(providers)
    if providers is not None and engine not in (None, "onnx"):
        raise ArgumentError(f"providers are ONNX Runtime's, and engine is {engine!r}; give one of them")
    if threads is not None and whole("threads", threads) > MAX_THREADS:
        raise ArgumentError(f"threads is {threads}; it must be at most {MAX_THREADS}")
    for name, value in (("path", path), ("engine_cache", engine_cache)):
        if value is not None and not isinstance(value, (str, Path)):
            raise ArgumentError(f"{name} is {value!r}; it must be the path of a folder")
    bundle = read_bundle(path)
    cache = Path(engine_cache) if engine_cache is not None else default_engine_cache()
    wish = EngineOptions(threads, providers, engine, cache)
    pipe = Pipeline(bundle, device, wish, _device=None if ordinal is None else CudaDevice(ordinal))
    if engine == "auto":
        pipe.build_engines(build_options)
    return pipe


def _check_providers(given: Any) -> None:
    if given is None:
        return
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise ArgumentError(f"providers is {given!r}; it must be a list of names, or of (name, options)")
    for one in given:
        pair = isinstance(one, tuple) and len(one) == 2 and isinstance(one[0], str) and isinstance(one[1], Mapping)
        if not isinstance(one, str) and not pair:
            raise ArgumentError(f"a provider is {one!r}; it must be a name, or (name, options)")


def _by_length(conditions: Sequence[Condition]) -> list[tuple[NDArray[np.intp], Mapping[str, Float32]]]:
    """Conditions with texts of equal length together: their places, and the U-Net's inputs."""
    lengths = [0 if c.hidden is None else len(c.hidden) for c in conditions]
    places = [np.array([k for k, own in enumerate(lengths) if own == n]) for n in sorted(set(lengths))]
    return [(some, stacked([conditions[k] for k in some])) for some in places]


def _zeros(states: Float32, blank: bool) -> Float32:
    return np.zeros_like(states) if blank else states
