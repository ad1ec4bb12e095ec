"""CLIP's tokenizer (lower-cased byte-level BPE with ``</w>`` word ends) learns its merges from our captions."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizerFast

from ..sources.clip_tokenizer import BEGIN, END, tokenizer_of

# The word pattern of CLIP (https://github.com/openai/CLIP, simple_tokenizer.py).
PATTERN = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train_tokenizer(captions: list[str], vocab_size: int, max_length: int, folder: Path) -> CLIPTokenizerFast:
    """Learn merges and write ``vocab.json`` and ``merges.txt`` in CLIP's layout.

    Every byte exists both inside and at the end of a word, so that any text can be encoded.
    """
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges_wanted = vocab_size - 2 * len(alphabet) - 2
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    merges = [tuple(m) for m in json.loads(learner.to_str())["model"]["merges"]][:merges_wanted]
    vocab = alphabet + [a + "</w>" for a in alphabet] + [a + b for a, b in merges] + [BEGIN, END]
    ids = {token: k for k, token in enumerate(dict.fromkeys(vocab))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(m) for m in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tokenizer_of(ids, [" ".join(m) for m in merges], max_length)
