"""What a ``tokenizer.json`` may hold: what CLIP's and its kin hold. The library that reads it runs what the file says.

A file may ask that library for work without end (a normalizer that makes text longer again and again, patterns that
backtrack, 100,000 added tokens) or for what makes it panic. Such files are refused by name before it sees them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, TypeGuard

from ..errors import choices, shown

MAX_TOKENIZER = 16 << 20  # bytes; CLIP's has 2 to 4 MB
MAX_ADDED = 10_000  # tokens beside the vocabulary; CLIP's has 2. Each costs the library time
MAX_TOKEN = 256  # characters of an added token
MAX_ID = 2**31 - 1
MAX_KINDS = 16  # normalizers, or pre-tokenizers, one after the other
MAX_PATTERN = 512  # characters
MAX_GROWTH = 64  # how many times longer normalizers may make a text, at worst

# How many times longer each normalizer may make a text (Unicode's own worst cases, in UTF-8).
GROWTH = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 2, "Strip": 1, "StripAccents": 1,
          "BertNormalizer": 8, "Nmt": 1}  # fmt: skip
PRE_TOKENIZERS = ("ByteLevel", "Whitespace", "WhitespaceSplit", "BertPreTokenizer", "Punctuation", "Digits")
AROUND = ("TemplateProcessing", "RobertaProcessing", "BertProcessing", "ByteLevel")  # post-processors
# A pattern is a choice of sequences; in each, only the last piece may be repeated, so that nothing is tried twice.
PIECE = re.compile(r"\[\^?(?:\\p\{\w{1,20}\}|\\[^\w]|\\[sSdDwWnrt]|[^\\\[\]])+\]|\\p\{\w{1,20}\}|\\[^\w]|\\[sSdDwWnrt]|"
                   r"[^\\\[\](){}.*+?|^$]")  # fmt: skip


def check_tokenizer(raw: bytes) -> None:
    """Check the text of a ``tokenizer.json``.

    Raises:
        ValueError, RecursionError: it is no JSON, or holds what this version does not hand on; the message names it.
    """
    data = json.loads(raw.decode("utf-8"))
    if not isinstance(data, dict):
        raise ValueError(f"it holds {type(data).__name__}, not an object")
    vocabulary = _model(data.get("model"))
    _added(data.get("added_tokens"), vocabulary)
    growth = 1
    for step in _steps(data.get("normalizer"), "normalizer", "normalizers"):
        growth *= _growth(step)
    if growth > MAX_GROWTH:
        raise ValueError(f"its normalizers may make a text {growth} times longer; they may {MAX_GROWTH} times")
    for step in _steps(data.get("pre_tokenizer"), "pre_tokenizer", "pretokenizers"):
        _pre_tokenizer(step)
    for step in _steps(data.get("post_processor"), "post_processor", "processors"):
        _around(step)


def _model(model: Any) -> dict[str, int]:
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind != "BPE":
        raise ValueError(f"it is of the kind {shown(kind)}; this version reads CLIP's byte-pair encoding (BPE) alone")
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, dict) or not isinstance(merges, list):
        raise ValueError("its model has no vocab and merges")
    for token, number in vocabulary.items():
        if type(number) is not int or not 0 <= number <= MAX_ID:
            raise ValueError(f"the id of {shown(token)} is {shown(number)}; it must be a whole number, 0 .. {MAX_ID}")
    if model.get("dropout"):
        raise ValueError(f"its dropout is {shown(model['dropout'])}, which would cut a prompt otherwise each time")
    if prefix := model.get("continuing_subword_prefix"):  # the library fails where a merge is shorter than it
        raise ValueError(f"its continuing_subword_prefix is {shown(prefix)}; CLIP's is empty")
    unknown = model.get("unk_token")
    if unknown is not None and (not isinstance(unknown, str) or unknown not in vocabulary):
        raise ValueError(f"its unk_token is {shown(unknown)}, which is not in its vocabulary")
    return vocabulary


def _added(tokens: Any, vocabulary: dict[str, int]) -> None:
    if tokens is None:
        return
    if not isinstance(tokens, list) or len(tokens) > MAX_ADDED:
        raise ValueError(f"its added_tokens are {_many(tokens)}; they must be a list of at most {MAX_ADDED}")
    for token in tokens:
        content, number = (token.get("content"), token.get("id")) if isinstance(token, dict) else (None, None)
        if not isinstance(content, str) or not 0 < len(content) <= MAX_TOKEN:
            raise ValueError(f"an added token is {shown(token)}; its content must have 1 .. {MAX_TOKEN} characters")
        if type(number) is not int or not 0 <= number <= MAX_ID:
            raise ValueError(f"the id of {shown(content)} is {shown(number)}; it must be a whole number, 0 .. {MAX_ID}")


def _many(value: Any) -> str:
    return f"{len(value)}" if isinstance(value, list) else shown(value)


def _steps(value: Any, what: str, inner: str, depth: int = 0) -> list[dict[str, Any]]:
    """The steps of a component, those of sequences one after the other."""
    if value is None:
        return []
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise ValueError(f"its {what} is {shown(value)}; it must be an object with a type")
    if value["type"] != "Sequence":
        return [value]
    parts = value.get(inner)
    if not isinstance(parts, list) or len(parts) > MAX_KINDS or depth > 2:
        raise ValueError(f"its {what} is a sequence of {_many(parts)}; it must be a list of at most {MAX_KINDS}")
    steps = [step for part in parts for step in _steps(part or {}, what, inner, depth + 1)]
    if len(steps) > MAX_KINDS:
        raise ValueError(f"its {what} has {len(steps)} steps; it may have {MAX_KINDS}")
    return steps


def _growth(step: dict[str, Any]) -> int:
    if step["type"] == "Replace":
        content = step.get("content")
        if not isinstance(content, str) or len(content) > MAX_GROWTH:
            raise ValueError(f"a normalizer replaces by {shown(content)}; it must be a text of {MAX_GROWTH} characters")
        check_pattern(step.get("pattern"))
        return max(1, len(content))
    if step["type"] not in GROWTH:
        raise ValueError(f"its normalizer is {shown(step['type'])}; choose from {choices((*GROWTH, 'Replace'))}")
    return GROWTH[step["type"]]


def _pre_tokenizer(step: dict[str, Any]) -> None:
    if step["type"] == "Split":
        check_pattern(step.get("pattern"))
    elif step["type"] not in PRE_TOKENIZERS:
        raise ValueError(
            f"its pre_tokenizer is {shown(step['type'])}; choose from {choices((*PRE_TOKENIZERS, 'Split'))}"
        )


def check_pattern(pattern: Any) -> None:
    """Check a pattern: a text, or a regular expression that takes no more time than the text is long."""
    kinds: dict[str, Callable[[str], bool]] = {"String": bool, "Regex": _is_flat}
    if not isinstance(pattern, dict) or len(pattern) != 1 or next(iter(pattern)) not in kinds:
        raise ValueError(f"a pattern is {shown(pattern)}; it must be a String or a Regex")
    kind, text = next(iter(pattern.items()))
    if not isinstance(text, str) or len(text) > MAX_PATTERN or not kinds[kind](text):
        raise ValueError(
            f"a pattern is {shown(pattern)}; it must not be empty, and a Regex must be a choice of characters and "
            r"classes, of which the last may be repeated ([\p{L}]+|[\p{N}]), as CLIP's is"
        )


def _is_flat(pattern: str) -> bool:
    at, pieces = 0, 0
    while at < len(pattern):
        if pattern[at] == "|" and pieces:
            at, pieces = at + 1, 0
        elif match := PIECE.match(pattern, at):
            at, pieces = match.end(), pieces + 1
            if pattern[at : at + 1] == "+":
                at += 1
                if pattern[at : at + 1] not in ("", "|"):
                    return False
        else:
            return False
    return pieces > 0


def _around(step: dict[str, Any]) -> None:
    kind = step["type"]
    if kind not in AROUND:
        raise ValueError(f"its post_processor is {shown(kind)}; choose from {choices(AROUND)}")
    if kind == "TemplateProcessing":
        _template(step)
    elif kind != "ByteLevel":
        for key in ("sep", "cls"):
            pair = step.get(key)
            if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and _is_id(pair[1])):
                raise ValueError(f"{kind}'s {key} is {shown(pair)}; it must be a token and its id")


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_ID


def _is_list(value: Any, fits: Callable[[Any], bool]) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and len(value) <= MAX_KINDS and all(map(fits, value))


def _template(step: dict[str, Any]) -> None:
    special = step.get("special_tokens")
    if not isinstance(special, dict):
        raise ValueError(f"TemplateProcessing's special_tokens are {shown(special)}; they must be an object")
    for name, token in special.items():
        ids, tokens = (token.get("ids"), token.get("tokens")) if isinstance(token, dict) else (None, None)
        if not (_is_list(ids, _is_id) and _is_list(tokens, lambda t: isinstance(t, str)) and len(ids) == len(tokens)):
            raise ValueError(f"TemplateProcessing's token {shown(name)} is {shown(token)}; it needs ids and tokens")
    for key in ("single", "pair"):
        pieces = step.get(key)
        if not isinstance(pieces, list) or len(pieces) > MAX_KINDS:
            raise ValueError(f"TemplateProcessing's {key} is {shown(pieces)}; it must be a list")
        for piece in pieces:
            kind, said = next(iter(piece.items())) if isinstance(piece, dict) and len(piece) == 1 else (None, None)
            name, segment = (said.get("id"), said.get("type_id")) if isinstance(said, dict) else (None, None)
            names = ("A", "B") if kind == "Sequence" else tuple(special) if kind == "SpecialToken" else ()
            if name not in names or not _is_id(segment):
                raise ValueError(f"TemplateProcessing's {key} holds {shown(piece)}, which its tokens do not tell")
