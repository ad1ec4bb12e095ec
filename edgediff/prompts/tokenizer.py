"""Prompt -> token ids, by the ``tokenizers`` library and the bundle's ``tokenizer.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import BundleError, EngineError
from .clip_tokenizer import VOCABULARY, clip_backend


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
    """

    def __init__(self, path: Path, max_length: int, pad_id: int) -> None:
        try:
            from tokenizers import Tokenizer as Backend
        except ImportError as error:
            raise EngineError("the package tokenizers is not installed; run: pip install tokenizers") from error
        try:
            self._backend: Any = clip_backend(path) if path.name == VOCABULARY else Backend.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{path.name} is not a tokenizer that can be read: {error}") from error
        self._backend.no_padding()
        self._backend.no_truncation()
        self.max_length, self.pad_id = max_length, pad_id
        around = self._backend.encode("").ids
        if len(around) != 2:
            raise BundleError(f"{path.name} puts {len(around)} tokens around a prompt; CLIP's puts 2, begin and end")
        self.begin, self.end = (int(i) for i in around)
        comma = self._backend.encode(",", add_special_tokens=False).ids
        self.comma: int | None = int(comma[0]) if len(comma) == 1 else None

    def tokens(self, text: str) -> list[tuple[int, int]]:
        """``(id, index of its first character)`` of every token of ``text``, without begin and end."""
        encoded = self._backend.encode(text, add_special_tokens=False)
        return [(int(i), int(start)) for i, (start, _) in zip(encoded.ids, encoded.offsets, strict=True)]

    def save(self, path: Path) -> None:
        """Write it as a tokenizer.json."""
        self._backend.save(str(path))
