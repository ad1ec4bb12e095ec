"""CLIP's tokenizer is made of its byte-pair merges, without a download, and written as one ``tokenizer.json``."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edgediff.scratch import scratch_folder

MERGES = Path(__file__).parent / "clip" / "bpe_simple_vocab_16e6.txt.gz"
COUNT = 49152 - 256 - 2  # merges that CLIP uses of those in the file
VOCABULARY = ("vocab.json", "merges.txt")
BEGIN, END, EXCLAMATION = "<|startoftext|>", "<|endoftext|>", "!"
SPECIAL = r"<\|startoftext\|>|<\|endoftext\|>|"


def clip_tokenizer(pad: str) -> Any:
    """Make a fast CLIP tokenizer of 49,408 tokens that fills with ``pad`` (Radford et al. 2021)."""
    merges = gzip.decompress(MERGES.read_bytes()).decode("utf-8").split("\n")[1 : COUNT + 1]
    letters = list(_bytes_to_unicode().values())
    tokens = [*letters, *(c + "</w>" for c in letters), *("".join(m.split()) for m in merges), BEGIN, END]
    return tokenizer_of({token: k for k, token in enumerate(tokens)}, merges, 77, pad)


def tokenizer_of(vocabulary: Mapping[str, int], merges: Sequence[str], length: int, pad: str = END) -> Any:
    """Make a fast CLIP tokenizer of these words and merges (``"a b"``) that reads ``length`` tokens at most."""
    with scratch_folder() as folder:
        (folder / "vocab.json").write_text(json.dumps(dict(vocabulary)), encoding="utf-8")
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
        return load_tokenizer(
            folder, unk_token=END, bos_token=BEGIN, eos_token=END, pad_token=pad, model_max_length=length
        )


def load_tokenizer(folder: str | Path, **settings: Any) -> Any:
    """Load a folder as a fast CLIP tokenizer, whatever class it names (SD 1.5's names a slow one).

    The constructor will not do: transformers 5 takes files by other names there, and ignores those of 4.
    """
    from transformers import CLIPTokenizerFast

    return CLIPTokenizerFast.from_pretrained(str(folder), local_files_only=True, **settings)


def write_tokenizer(tokenizer: Any, path: Path) -> None:
    """Write ``tokenizer.json``, the same with every release of transformers.

    transformers 5 looks for the special tokens before a text is lower-cased, and so names them in the word pattern as
    well. Written is what 4 does, as OpenAI's CLIP: they are found in the lower-cased text.
    """
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in data["added_tokens"]:
        if token["content"] in (tokenizer.bos_token, tokenizer.eos_token):
            token["normalized"] = True
    for step in data["pre_tokenizer"].get("pretokenizers", []):
        if "Regex" in step.get("pattern", {}):
            step["pattern"]["Regex"] = step["pattern"]["Regex"].removeprefix(SPECIAL)
    Tokenizer.from_str(json.dumps(data)).save(str(path))


def _bytes_to_unicode() -> dict[int, str]:
    """Give GPT-2's stand-in character for each byte: itself where it prints, one beyond 255 where it does not."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [b for b in range(256) if b not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + k) for k, b in enumerate(rest)}
