"""CLIP's tokenizer, built of ``vocab.json`` and ``merges.txt``, for folders that hold no ``tokenizer.json``.

It is what transformers makes of the same files (Radford et al. 2021): text in lower case, cut by a pattern, byte-pair
merges with ``</w>`` at the end of a word.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VOCABULARY, MERGES = "vocab.json", "merges.txt"
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
SPECIAL = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}  # what transformers takes


def special_tokens(folder: Path) -> dict[str, str]:
    """Return a folder's special tokens by their names, ``pad_token`` among them; CLIP's where it does not say.

    Raises:
        ValueError, OSError: a file that is there cannot be read, or is no JSON object.
    """
    found: dict[str, str] = dict(SPECIAL)
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            continue
        data = json.loads((folder / name).read_bytes())
        if not isinstance(data, dict):
            raise ValueError(f"{name} holds {type(data).__name__}, not an object")
        for key in SPECIAL:
            token = data.get(key)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str) and token:
                found[key] = token
    return found


def clip_backend(vocabulary: Path) -> Any:
    """Build the tokenizer of a vocabulary and of the merges beside it, as a ``tokenizers.Tokenizer``.

    Raises:
        ValueError, OSError: a file is missing, or of another form.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE

    folder = vocabulary.parent
    ids = json.loads(vocabulary.read_bytes())
    if not isinstance(ids, dict) or not all(isinstance(i, int) for i in ids.values()):
        raise ValueError("it is no object of tokens and their ids")
    special = special_tokens(folder)
    if missing := [token for token in special.values() if token not in ids]:
        raise ValueError(f"the token {missing[0]!r} is not in it")
    lines = (folder / MERGES).read_text(encoding="utf-8").split("\n")
    pairs: Any = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    if bad := [pair for pair in pairs if len(pair) != 2]:
        raise ValueError(f"{MERGES} has a line {' '.join(bad[0])!r}; each holds two pieces")
    merges = [(pair[0], pair[1]) for pair in pairs]
    backend: Any = Tokenizer(
        BPE(ids, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=special["unk_token"])
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    begin, end = special["bos_token"], special["eos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(token, ids[token]) for token in dict.fromkeys((begin, end))]
    )
    tokens = dict.fromkeys(special.values())
    backend.add_special_tokens([AddedToken(token, normalized=token in (begin, end)) for token in tokens])
    return backend
