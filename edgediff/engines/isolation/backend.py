"""ONNX Runtime and the tokenizers for one bundle, in a child that can do little else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ...bundle.manifest import Bundle, Part, TokenizerFile
from ...confined import stays
from ...device.base import Device
from ...prompts.clip_tokenizer import MERGES, VOCABULARY
from ...system_memory import free_memory
from ..base import Engine, EngineOptions
from ..onnxruntime import OnnxRuntime
from .limits import Held, Limits, held
from .opened import IsolatedEngine, IsolatedTokenizer
from .process import Child

BASE, TIMES, SHARE = 4 << 30, 4, 0.9  # of Limits.memory where it is None
BESIDE = (MERGES, "special_tokens_map.json", "tokenizer_config.json")  # what CLIP's vocabulary is read with


class Isolation(OnnxRuntime):
    """The backend of one pipeline whose native libraries run in a child.

    Args:
        bundle: whose parts.
        limits: what the child may take.

    Attributes:
        held: what holds the child back on this system.

    Raises:
        EngineError: not even memory can be bounded here.
    """

    name = "ONNX Runtime, isolated"
    devices: tuple[str, ...] = ("cpu",)

    def __init__(self, bundle: Bundle, limits: Limits) -> None:
        self.bundle = bundle
        self.held: Held = held(limits, memory_of(bundle, limits))
        self._child = Child(self.held, lambda: readable(bundle))

    def engine(
        self,
        part: str,
        path: Callable[[], Path],
        manifest: Part,
        options: EngineOptions,
        device: Device | None,
        arrays: bool = False,
    ) -> Engine:
        return IsolatedEngine(self._child, part, path, manifest, options.threads)

    def tokenizer(self, text: TokenizerFile) -> IsolatedTokenizer:
        """Return a text encoder's tokenizer. Raises as ``Tokenizer``, and as ``Bundle.path``."""
        return IsolatedTokenizer(
            self._child, lambda: self.bundle.path("tokenizer", text.file), text.max_length, text.pad_id
        )

    def close(self) -> None:
        """End the child, in the middle of a call if need be."""
        self._child.close()


def memory_of(bundle: Bundle, limits: Limits) -> int:
    """Return the bytes that ``limits.memory`` stands for, for this bundle and now."""
    if limits.memory is not None:
        return int(limits.memory)
    most = BASE + TIMES * sum(file.size for _, file in bundle.files())
    free = free_memory()
    return most if free is None else min(most, int(SHARE * free) or most)


def readable(bundle: Bundle) -> Sequence[Path]:
    """Return the files of a bundle that a child reads, at the ends of links. One that ``confined`` refuses is none."""
    root = bundle.root
    named = [root / file.path for part in bundle.parts.values() for file in part.files]
    for text in bundle.text:
        path = root / text.file.path
        named += [path, *((path.with_name(name) for name in BESIDE) if path.name == VOCABULARY else ())]
    return list(dict.fromkeys(path.resolve() for path in named if stays(root, path) and path.is_file()))
