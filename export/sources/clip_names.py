"""Weights of a CLIPTextModel have two spellings: transformers 5 took its inner module ``text_model`` out."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

INNER = "text_model."
T = TypeVar("T")


def renamed(weights: Mapping[str, T], known: Collection[str]) -> dict[str, T]:
    """Give weights the spelling that ``known`` has, the names of a module; what is in neither keeps its own."""
    return {_spelt(name, known): value for name, value in weights.items()}


def read_as(model: Any) -> dict[str, Any]:
    """Give the arguments of ``from_pretrained`` with which a CLIPTextModel reads files of either spelling.

    ``model`` is one without weights. transformers 5 reads both; 4 fills one that it does not know at random.
    """
    return {"key_mapping": {rf"^(?!{re.escape(INNER)})": INNER}} if hasattr(model, "text_model") else {}


def _spelt(name: str, known: Collection[str]) -> str:
    return next((n for n in (name, name.removeprefix(INNER), INNER + name) if n in known), name)
