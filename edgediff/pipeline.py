"""Prompt in, pictures out: ``pipe(...)`` and ``pipe.stream(...)``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from .bundle.manifest import Bundle
from .device.base import Device
from .engines.base import Engine, EngineOptions
from .engines.choose import Parts
from .engines.isolation.limits import Held
from .errors import ArgumentError, BundleError, CopyError, EngineError, choices, shown
from .generation.arguments import Arguments
from .generation.elsewhere import OwnAttributes
from .generation.request import check
from .generation.run import run
from .generation.runner_pool import RunnerPool
from .generation.signature import takes_arguments
from .generation.step import Result, Step
from .generation.stream import Stream
from .prompts.textual_inversion import Embeddings, read_embedding
from .prompts.tokenizer import Tokenizer
from .system_memory import memory_named

if TYPE_CHECKING:
    from .engines.background_build import Build
    from .engines.isolation.backend import Isolation
    from .engines.tensorrt.options import BuildOptions


class Pipeline(OwnAttributes):
    """A pipeline runs a bundle by engines; ``load`` makes it. Calls from several threads do not disturb each other.

    Args:
        bundle: the model.
        options: how its parts shall run.
        device: an opened GPU, which the pipeline closes at its end; None is the CPU.
        isolation: runs the parts and the tokenizers in a child, which the pipeline ends at its own end.

    Attributes:
        bundle: the model.
        build: the TensorRT engines that are built in the background; None where there are none.
    """

    __slots__ = (
        *("__weakref__", "_closed", "_device", "_embeddings", "_isolation"),
        *("_lock", "_options", "_parts", "_runners", "_tokenizers"),
        *("build", "bundle"),
    )

    def __init__(
        self,
        bundle: Bundle,
        options: EngineOptions | None = None,
        device: Device | None = None,
        isolation: Isolation | None = None,
    ) -> None:
        self.bundle = bundle
        self.build: Build | None = None
        self._device, self._isolation = device, isolation
        self._options = EngineOptions() if options is None else options
        self._parts: Parts | None = None
        self._runners = RunnerPool()
        self._tokenizers: tuple[Tokenizer, ...] | None = None
        self._embeddings: Embeddings | None = None
        self._closed = False
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"Pipeline({self.bundle.name!r} {self.bundle.id}, {self.device})"

    def __reduce__(self) -> NoReturn:
        raise CopyError("a pipeline holds engines and cannot be copied or pickled; load() one in each process")

    @property
    def device(self) -> str:
        """Where the parts run: cpu, cuda, cuda:1, ...; host is a device in host memory."""
        ordinal = None if self._device is None else self._device.ordinal
        return {None: "cpu", -1: "host", 0: "cuda"}.get(ordinal, f"cuda:{ordinal}")

    @property
    def isolation(self) -> Held | None:
        """What holds the child back that runs the parts and the tokenizers; None where there is none."""
        return None if self._isolation is None else self._isolation.held

    @takes_arguments(Arguments)
    def __call__(self, arguments: Arguments) -> Result:
        """Make pictures, and wait for them.

        >>> edgediff.save(edgediff.load()("a red apple", seed=7).images[0], "apple.png")

        ARGUMENTS

        Raises:
            ArgumentError, PromptError: before any work starts.
            MemoryLimitError: before any work starts, where the call cannot fit; later, where memory ends.
            BundleError, EngineError: a part is damaged, cannot run, or gave what it must not.
            DeadlineError: the call's ``deadline`` is over.
        """
        for step in self._stream(arguments):
            if step.last:
                return step.result()
        raise AssertionError("a plan has at least one row")

    @takes_arguments(Arguments)
    def stream(self, arguments: Arguments) -> Generator[Step, None, None]:
        """Yield a ``Step`` after every U-Net call; leaving the loop cancels. Arguments are checked before this returns.

        >>> for step in edgediff.load().stream("a tiger", seed=7):
        ...     print(step.index, step.total, step.preview()[0])

        ARGUMENTS

        Raises:
            ArgumentError, PromptError: before any work starts.
            MemoryLimitError: before any work starts, where the call cannot fit; later, where memory ends.
            BundleError, EngineError: a part is damaged, cannot run, or gave what it must not.
            DeadlineError: the call's ``deadline`` is over.
        """
        return self._stream(arguments)

    def _stream(self, arguments: Arguments, embeddings: Embeddings | None = None) -> Generator[Step, None, None]:
        embeddings = self._textual_inversions() if embeddings is None else embeddings
        with memory_named("reading the call's arguments"):
            request = check(self.bundle, self._open_tokenizers(), embeddings, arguments, self._open_parts().allow)
        runners = self._runners  # before the engines: a change puts both in place of those
        return Stream(run(request, self._serving(), self._device, runners))

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
                cure = "export it again" if self.bundle.foreign is None else "export its source with edgediff export"
                raise BundleError(
                    f"the text encoder of bundle {self.bundle.name!r} has no input extra_embeddings; {cure}"
                )
            self._embeddings = self._textual_inversions().add(word, vectors)
        return word

    def unload_textual_inversion(self, token: str) -> None:
        """Let the word be a word again. Raises ``ArgumentError`` for one that stands for nothing."""
        with self._lock:
            self._embeddings = self._textual_inversions().remove(token)

    def engine(self, part: str, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Engine:
        """The part's engine, for inputs of these shapes where they matter; opened on first use."""
        return self._open_parts().pick(self._known(part), shapes)

    def set_engine(self, part: str, engine: Engine) -> None:
        """Run a part by ``engine``, any function of named arrays, from the next call on.

        Raises ``ArgumentError`` for a part that the bundle does not have.
        """
        self._known(part)
        if not callable(engine):
            raise ArgumentError(f"engine is {shown(engine)}; it must be a function of named arrays")
        self._change(lambda parts: parts.with_engine(part, engine))

    def _known(self, part: str) -> str:
        if not isinstance(part, str) or part not in self.bundle.parts:
            raise ArgumentError(
                f"bundle {self.bundle.name!r} has no part {shown(part)}; choose from {choices(self.bundle.parts)}"
            )
        return part

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
            ordinal, options = self._device.ordinal, self._open_parts().options
            self.build = build_missing(self.bundle, ordinal, options, self._take, build_options, command) or self.build
        return self.build

    def warm(self) -> Pipeline:
        """Open everything that a call needs now rather than at the first call."""
        self._open_tokenizers()
        for part in self.bundle.needed:
            self.engine(part)
        return self

    def close(self) -> None:
        """Stop building, wait for the GPU and give back its memory and the engines; calls are refused afterwards. A
        pipeline is a context manager that does so at its end.
        """
        if self._isolation is not None:
            self._isolation.close()  # first: a call has the lock while its child opens something
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self.build is not None:
            self.build.cancel()
            self.build.wait()
        try:
            self._runners.close()
        finally:  # a GPU that failed is let go, too
            self._parts = None
            if self._device is not None:
                self._device.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_parts(self) -> Parts:
        """The engines that the next call begins with."""
        with self._lock:
            if self._closed:
                raise ArgumentError("this pipeline is closed; load() another")
            if self._parts is None:
                self._parts = Parts(self.bundle, self._options, self._device)
            return self._parts

    def _serving(self) -> Parts:
        """The engines of one call. While TensorRT's are built, ONNX Runtime serves; where it cannot, they are waited
        for.
        """
        if self.build is not None and self.build.running:
            try:
                for part in self.bundle.needed:
                    self.engine(part)
            except EngineError:
                self.build.wait()
        return self._open_parts()

    def _change(self, how: Callable[[Parts], Parts]) -> None:
        """Other engines from the next call on; those that run keep theirs, and leave no runner that holds them."""
        with self._lock:
            self._parts = how(self._open_parts())
            former, self._runners = self._runners, RunnerPool()
        former.close()

    def _take(self, part: str) -> None:
        """Run a part by an engine file that was built, from the next call on."""
        engine = self._open_parts().open_by("tensorrt", part)  # takes seconds; calls go on
        self._change(lambda parts: parts.with_opened("tensorrt", part, engine))

    def _open_tokenizers(self) -> tuple[Tokenizer, ...]:
        """One a text encoder."""
        with self._lock:
            if self._tokenizers is None:
                isolation = self._isolation
                self._tokenizers = tuple(
                    isolation.tokenizer(t)
                    if isolation is not None
                    else Tokenizer(self.bundle.path("tokenizer", t.file), t.max_length, t.pad_id)
                    for t in self.bundle.text
                )
            return self._tokenizers

    def _textual_inversions(self) -> Embeddings:
        """The words that stand for vectors; at first those that come with the bundle."""
        with self._lock:
            if self._embeddings is None:
                embeddings = Embeddings(self.bundle.embedding_widths or ())
                for carried in self.bundle.embeddings:
                    path = self.bundle.path("embedding", carried.file)
                    try:
                        embeddings = embeddings.add(carried.word, read_embedding(path)[1])
                    except ArgumentError as error:
                        raise BundleError(f"bundle {self.bundle.name!r}: embeddings: {error}") from error
                self._embeddings = embeddings
            return self._embeddings
