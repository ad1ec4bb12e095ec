"""CLIP's tokenizer, built of ``vocab.json`` and ``merges.txt``, for folders that hold no ``tokenizer.json``.

It is what transformers makes of the same files (Radford et al. 2021): text in lower case, cut by a pattern, byte-pair
merges with ``</w>`` at the end of a word.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import shown
from ..files import read_regular
from .tokenizer_bounds import MAX_ID, MAX_TOKENIZER

VOCABULARY, MERGES = "vocab.json", "merges.txt"
CONFIGS = ("special_tokens_map.json", "tokenizer_config.json")  # beside them
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
MAX_CONFIG = 2 << 20  # bytes; tokenizer_config.json has a few kB
SPECIAL = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}  # what transformers takes


def special_tokens(folder: Path) -> dict[str, str]:
    """Return a folder's special tokens by their names, ``pad_token`` among them; CLIP's where it does not say.

    Raises:
        ValueError, OSError: a file that is there cannot be read, or is no JSON object.
    """
    found: dict[str, str] = dict(SPECIAL)
    for name in CONFIGS:
        if not (folder / name).is_file():
            continue
        data = json.loads(read_regular(folder / name, MAX_CONFIG))
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
    ids = json.loads(read_regular(vocabulary, MAX_TOKENIZER))
    if not isinstance(ids, dict) or not all(type(i) is int and 0 <= i <= MAX_ID for i in ids.values()):
        raise ValueError("it is no object of tokens and their ids")
    special = special_tokens(folder)
    if missing := [token for token in special.values() if token not in ids]:
        raise ValueError(f"the token {shown(missing[0])} is not in it")
    lines = read_regular(folder / MERGES, MAX_TOKENIZER).decode("utf-8").replace("\r\n", "\n").split("\n")
    pairs: Any = [tuple(line.split()) for line in lines if line and not line.startswith("#version")]
    if bad := [pair for pair in pairs if len(pair) != 2]:
        raise ValueError(f"{MERGES} has a line {shown(' '.join(bad[0]))}; each holds two pieces")
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
