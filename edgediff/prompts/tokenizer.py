"""Prompt -> token ids, by the ``tokenizers`` library and the bundle's ``tokenizer.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import BundleError, EngineError, PromptError, printable, shown
from ..files import read_regular
from ..rust import panics_caught
from .clip_tokenizer import VOCABULARY, clip_backend
from .tokenizer_bounds import MAX_ID, MAX_TOKENIZER, check_tokenizer


class Tokenizer:
    """A tokenizer cuts text as CLIP does.

    Args:
        path: the bundle's tokenizer.json (its post-processor adds begin and end), or CLIP's vocab.json with its merges
            beside it.
        max_length: tokens that the text encoder takes, begin and end included.
        pad_id: id that fills the rest.

    Attributes:
        begin, end: ids that stand before and after every chunk.
        comma: id of a comma; None where there is none.

    Raises:
        BundleError: a file that cannot be read, or holds what ``tokenizer_bounds`` refuses; no begin and end.
        EngineError: the package tokenizers is not installed.
    """

    def __init__(self, path: Path, max_length: int, pad_id: int) -> None:
        try:
            import tokenizers  # noqa: F401
        except ImportError as error:
            raise EngineError("the package tokenizers is not installed; run: pip install tokenizers") from error
        self.max_length, self.pad_id = max_length, pad_id
        try:
            with panics_caught():
                self._backend = clip_backend(path) if path.name == VOCABULARY else _read(path)
                self._backend.no_padding()
                self._backend.no_truncation()
                around = self._encode("", True)
                comma = self._encode(",", False)
                padding = self._backend.id_to_token(pad_id)
        except MemoryError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{path.name} is not a tokenizer that can be read: {_short(error)}") from error
        if len(around) != 2:
            raise BundleError(f"{path.name} puts {len(around)} tokens around a prompt; CLIP's puts 2, begin and end")
        if padding is None:
            raise BundleError(f"{path.name} has no token of the id {pad_id}, which fills up prompts (pad_id)")
        self.begin, self.end = (number for number, _ in around)
        self.comma: int | None = comma[0][0] if len(comma) == 1 else None

    def tokens(self, text: str) -> list[tuple[int, int]]:
        """``(id, index of its first character)`` of every token of ``text``, without begin and end.

        Raises:
            PromptError: the library gives up on this text.
        """
        try:
            with panics_caught():
                return self._encode(text, False)
        except MemoryError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise PromptError(f"the tokenizer cannot cut {shown(text)}: {_short(error)}") from error

    def save(self, path: Path) -> None:
        """Write it as a tokenizer.json."""
        self._backend.save(str(path))

    _backend: Any

    def _encode(self, text: str, around: bool) -> list[tuple[int, int]]:
        encoded = self._backend.encode(text, add_special_tokens=around)
        pairs = [(int(i), int(start)) for i, (start, _) in zip(encoded.ids, encoded.offsets, strict=True)]
        for number, start in pairs:
            if number > MAX_ID or start > len(text):
                raise ValueError(f"it gives the id {number} at character {start} of {len(text)}")
        return pairs


def _read(path: Path) -> Any:
    from tokenizers import Tokenizer as Backend

    raw = read_regular(path, MAX_TOKENIZER)
    check_tokenizer(raw)
    return Backend.from_buffer(raw)


def _short(error: Exception) -> str:
    """What a library says, which may be a whole file."""
    return printable(str(error)[:300])
