"""Prompt -> token ids, by the ``tokenizers`` library and the bundle's ``tokenizer.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError, EngineError

Ids = NDArray[np.int64]


class Tokenizer:
    """A CLIP tokenizer: begin, up to ``max_length - 2`` tokens, end, padding.

    Args:
        path: the bundle's tokenizer.json (its post-processor adds begin and end).
        max_length: tokens that the text encoder takes, begin and end included.
        pad_id: id that fills the rest.
    """

    def __init__(self, path: Path, max_length: int, pad_id: int) -> None:
        try:
            from tokenizers import Tokenizer as Backend
        except ImportError as error:
            raise EngineError("the package tokenizers is not installed; run: pip install tokenizers") from error
        try:
            self._backend: Any = Backend.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{path.name} is not a tokenizer that can be read: {error}") from error
        self._backend.no_padding()
        self._backend.no_truncation()
        self.max_length = max_length
        self.pad_id = pad_id

    def encode(self, prompt: str) -> tuple[Ids, str]:
        """Ids, int64 (max_length,), and the words of ``prompt`` that did not fit (empty when all did)."""
        encoded = self._backend.encode(prompt)
        ids, cut = list(encoded.ids), ""
        if len(ids) > self.max_length:
            # Offsets of special tokens are (0, 0), so the first cut token is an ordinary one: the last kept is end.
            start = encoded.offsets[self.max_length - 1][0]
            cut = prompt[start:].strip()
            ids = [*ids[: self.max_length - 1], ids[-1]]
        out = np.full(self.max_length, self.pad_id, np.int64)
        out[: len(ids)] = ids
        return out, cut
