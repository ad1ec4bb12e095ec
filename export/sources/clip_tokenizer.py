"""CLIP's tokenizer is made of its byte-pair merges, without a download."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

MERGES = Path(__file__).parent / "clip" / "bpe_simple_vocab_16e6.txt.gz"
COUNT = 49152 - 256 - 2  # merges that CLIP uses of those in the file
BEGIN, END, EXCLAMATION = "<|startoftext|>", "<|endoftext|>", "!"


def clip_tokenizer(pad: str) -> Any:
    """Make a fast CLIP tokenizer of 49,408 tokens that fills with ``pad`` (Radford et al. 2021)."""
    from transformers import CLIPTokenizerFast

    merges = gzip.decompress(MERGES.read_bytes()).decode("utf-8").split("\n")[1 : COUNT + 1]
    letters = list(_bytes_to_unicode().values())
    tokens = [*letters, *(c + "</w>" for c in letters), *("".join(m.split()) for m in merges), BEGIN, END]
    with tempfile.TemporaryDirectory() as folder:
        vocab, pairs = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocab.write_text(json.dumps({token: k for k, token in enumerate(tokens)}), encoding="utf-8")
        pairs.write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        return CLIPTokenizerFast(
            vocab_file=str(vocab),
            merges_file=str(pairs),
            unk_token=END,
            bos_token=BEGIN,
            eos_token=END,
            pad_token=pad,
            model_max_length=77,
        )


def _bytes_to_unicode() -> dict[int, str]:
    """Give GPT-2's stand-in character for each byte: itself where it prints, one beyond 255 where it does not."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [b for b in range(256) if b not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + k) for k, b in enumerate(rest)}
