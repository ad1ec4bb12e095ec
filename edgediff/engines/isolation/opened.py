"""What the parent holds of engines and tokenizers in the child; a fresh child opens them again."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ...bundle.manifest import Part, Tensor
from ...errors import BundleError, EngineError
from ...prompts.tokenizer import Tokenizer
from .channel import DTYPES, Arrays, Message
from .process import Child

_numbers = itertools.count(1)
MOST_TOKENS = 64  # a character; beyond it no tokenizer cuts, but grows
MOST_ID = 1 << 31


class Opened:
    """Something that is open in a child.

    Args:
        child: where.
        what: the part, for messages.
        order: gives the message that opens it; called again for each fresh child, so that files are checked again.
    """

    def __init__(self, child: Child, what: str, order: Callable[[], Message]) -> None:
        self._child, self._what, self._order = child, what, order
        self._number, self._generation = next(_numbers), 0
        self.facts: Message = {}
        with child.lock:
            self._open()
        weakref.finalize(self, child.drop, self._number).atexit = False

    def ask(self, message: Message, arrays: Arrays | None = None) -> tuple[Message, dict[str, NDArray[Any]]]:
        """Let the child do something with it. Raises as ``Child.ask``."""
        with self._child.lock:
            self._open()
            return self._child.ask(self._what, {**message, "id": self._number}, arrays)

    def _open(self) -> None:
        self._child.start(self._what)
        if self._generation != self._child.generation:
            self.facts, _ = self._child.ask(self._what, {**self._order(), "id": self._number})
            self._generation = self._child.generation


class IsolatedEngine:
    """ONNX Runtime runs one part in a child. Calls from several threads wait for each other.

    Args:
        child: where.
        name: the part's name, for messages.
        path: gives the .onnx file, checked.
        part: the manifest's description, which the file must match.
        threads: intra-op threads; all physical cores when None.
    """

    def __init__(self, child: Child, name: str, path: Callable[[], Path], part: Part, threads: int | None) -> None:
        self.name, self.inputs, self.outputs = name, part.inputs, part.outputs
        described = {"inputs": _plain(part.inputs), "outputs": _plain(part.outputs), "threads": threads}
        self._opened = Opened(
            child, name, lambda: {"op": "engine", "name": name, "path": str(path().absolute()), **described}
        )

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run once.

        Raises:
            EngineError: as ``OnnxRuntimeEngine``; the child died.
            MemoryLimitError, DeadlineError: the call went beyond a limit.
        """
        for key, values in inputs.items():
            if values.dtype.name not in DTYPES:
                raise EngineError(f"{self.name}: input {key} is of type {values.dtype}; it must be numbers")
        _, found = self._opened.ask({"op": "run"}, inputs)
        names = [tensor.name for tensor in self.outputs]
        if list(found) != names:
            raise EngineError(f"{self.name}: its child gave {list(found)[:20]}, and not {names}")
        return found


class IsolatedTokenizer(Tokenizer):
    """A tokenizer whose library, and with it the stranger's tokenizer.json, is in a child.

    Args:
        child: where.
        path: gives the tokenizer's file, checked.
        max_length, pad_id: as ``Tokenizer``.
    """

    def __init__(self, child: Child, path: Callable[[], Path], max_length: int, pad_id: int) -> None:
        self.max_length, self.pad_id = max_length, pad_id
        self._opened = Opened(
            child,
            "tokenizer",
            lambda: {"op": "tokenizer", "path": str(path().absolute()), "max_length": max_length, "pad_id": pad_id},
        )
        facts = self._opened.facts
        self.begin, self.end = _id(facts.get("begin")), _id(facts.get("end"))
        self.comma = None if facts.get("comma") is None else _id(facts["comma"])

    def tokens(self, text: str) -> list[tuple[int, int]]:
        """``(id, index of its first character)`` of every token of ``text``, without begin and end.

        Raises:
            BundleError: more tokens than a text can have, or places outside it.
        """
        _, found = self._opened.ask({"op": "tokens", "text": text})
        pairs = found.get("tokens")
        if pairs is None or pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind != "i":
            raise BundleError("tokenizer: its child gave something else than tokens")
        if len(pairs) > MOST_TOKENS * (len(text) + 1):
            raise BundleError(f"tokenizer: it makes {len(pairs)} tokens of {len(text)} characters")
        if len(pairs) and not (
            0 <= pairs[:, 0].min() <= pairs[:, 0].max() < MOST_ID and 0 <= pairs[:, 1].min() <= pairs[:, 1].max()
            and pairs[:, 1].max() <= len(text)
        ):  # fmt: skip
            raise BundleError("tokenizer: it gave ids or places that no text has")
        return [(int(i), int(start)) for i, start in pairs.tolist()]

    def save(self, path: Path) -> None:
        raise EngineError("an isolated tokenizer cannot be saved; its child writes no files")


def _plain(tensors: tuple[Tensor, ...]) -> list[list[Any]]:
    return [[tensor.name, tensor.dtype, list(tensor.shape)] for tensor in tensors]


def _id(value: Any) -> int:
    if type(value) is not int or not 0 <= value < MOST_ID:
        raise BundleError("tokenizer: its child gave an id that is none")
    return value
