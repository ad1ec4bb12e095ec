"""The tokenizer of a text encoder: which of its files is read, how long texts are, and what fills them up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...confined import confined
from ...errors import BundleError, BundleNotFoundError, shown
from ...prompts.clip_tokenizer import CONFIGS, MERGES, VOCABULARY, special_tokens
from ...prompts.tokenizer_bounds import MAX_TOKENIZER
from ..strict_json import read_object

TOKENIZER, CONFIG = "tokenizer.json", "tokenizer_config.json"
CLIP_LENGTH = 77  # tokens
SENTENCEPIECE = ("spiece.model", "sentencepiece.bpe.model")


def tokenizer_file(root: Path, folder: Path) -> Path:
    """Return the file that the tokenizer is made of: ``tokenizer.json``, or ``vocab.json`` with the merges beside it.

    Raises:
        BundleNotFoundError: there is neither.
        BundleError: a tokenizer of another kind than CLIP's; a link out of ``root``.
    """
    if not folder.is_dir():
        raise BundleNotFoundError(f"{folder} is missing; a text encoder needs its tokenizer")
    for name in (TOKENIZER, VOCABULARY, MERGES, *CONFIGS):
        confined(root, folder / name)
    config = read_object(root, folder / CONFIG) if (folder / CONFIG).is_file() else {}
    kind = str(config.get("tokenizer_class", "CLIPTokenizer"))
    if not kind.startswith(("CLIP", "PreTrainedTokenizer", "TokenizersBackend")):
        raise BundleError(f"{folder} is a {kind}; this version reads CLIP's byte-pair encoding alone")
    if (folder / TOKENIZER).is_file():
        return folder / TOKENIZER
    if (folder / VOCABULARY).is_file() and (folder / MERGES).is_file():
        return folder / VOCABULARY
    if other := [name for name in SENTENCEPIECE if (folder / name).is_file()]:
        raise BundleError(f"{folder} holds {other[0]}; this version reads CLIP's byte-pair encoding alone")
    raise BundleNotFoundError(f"{folder} holds neither {TOKENIZER} nor {VOCABULARY} with {MERGES}")


def text_facts(root: Path, folder: Path, file: Path, encoder: Mapping[str, Any], length: int | str) -> dict[str, int]:
    """Return ``max_length`` and ``pad_id`` of a text encoder's tokenizer.

    Args:
        root: the whole model's folder.
        folder, file: of the tokenizer.
        encoder: the text encoder's config.json.
        length: of its input in the graph; a name where any length goes in.
    """
    config = read_object(root, folder / CONFIG) if (folder / CONFIG).is_file() else {}
    told = [config.get("model_max_length"), encoder.get("max_position_embeddings"), length]
    lengths = [int(v) for v in told if isinstance(v, (int, float)) and not isinstance(v, bool) and v < 2**31]
    ids = _ids(root, file)
    try:
        pad = special_tokens(folder)["pad_token"]
    except (ValueError, OSError, RecursionError) as error:
        raise BundleError(f"{folder}: the special tokens cannot be read: {error}") from error
    if pad not in ids:
        raise BundleError(f"{folder}: pad_token is {shown(pad)}, which is not in {file.name}")
    return {"max_length": min(lengths, default=CLIP_LENGTH), "pad_id": ids[pad]}


def _ids(root: Path, file: Path) -> dict[str, int]:
    """The tokens of a tokenizer's file and their ids."""
    data = read_object(root, file, MAX_TOKENIZER)
    if file.name == VOCABULARY:
        return data
    model = data.get("model")
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind != "BPE" or not isinstance(model.get("vocab"), dict):
        raise BundleError(
            f"{file} is of the kind {shown(kind)}; this version reads CLIP's byte-pair encoding (BPE) alone"
        )
    added = data.get("added_tokens") or []
    if not isinstance(added, list):
        raise BundleError(f"{file}: added_tokens is {shown(added)}; it must be a list")
    named = (t for t in added if isinstance(t, dict) and isinstance(t.get("content"), str) and "id" in t)
    return {**model["vocab"], **{t["content"]: t["id"] for t in named}}
