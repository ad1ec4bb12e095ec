"""A bundle's tokenizer: what CLIP's and its kin hold is read; what asks the library for endless work is refused."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

import edgediff
from edgediff import BundleError, PromptError
from edgediff.bundle.manifest import sha256
from edgediff.bundle.reading import read_bundle
from edgediff.prompts.clip_tokenizer import PATTERN
from edgediff.prompts.tokenizer import Tokenizer
from edgediff.prompts.tokenizer_bounds import MAX_ADDED, MAX_TOKENIZER, check_pattern
from edgediff.rust import LibraryPanic, panics_caught

Change = Callable[[dict[str, Any]], Any]
TINY = Path(__file__).parents[1] / "data" / "tiny" / "tokenizer.json"
DATA = json.loads(TINY.read_text(encoding="utf-8"))
PAD = 699


def changed(change: Change) -> dict[str, Any]:
    data = copy.deepcopy(DATA)
    change(data)
    return data


def opened(folder: Path, data: Any, pad: int = PAD) -> Tokenizer:
    path = folder / "tokenizer.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return Tokenizer(path, 77, pad)


def put(key: str, value: Any) -> Change:
    return lambda data: data.update({key: value})


def model(**values: Any) -> Change:
    return lambda data: data["model"].update(values)


def template(single: list[Any], special: dict[str, Any]) -> Change:
    made = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special}
    return put("post_processor", made)


def normalizers(*steps: dict[str, Any]) -> Change:
    return put("normalizer", {"type": "Sequence", "normalizers": list(steps)})


def added(count: int, content: str = "t{}") -> Change:
    """That many tokens beside the vocabulary."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    more = [{"id": 700 + k, "content": content.format(k), **flags} for k in range(count)]
    return lambda data: data["added_tokens"].extend(more)


WORD_LEVEL = {"type": "WordLevel", "vocab": {"q": 0}, "unk_token": "[UNK]"}
GROWING = {"type": "Replace", "pattern": {"Regex": "[a-z]"}, "content": "xxxxxxxxxx"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        # These made the library panic, at opening or at the first prompt.
        (template([{"SpecialToken": {"id": "x", "type_id": 0}}], {}), "which its tokens do not tell"),
        (put("model", WORD_LEVEL), r"reads CLIP's byte-pair encoding \(BPE\) alone"),
        (put("normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": "b"}), "must not be empty"),
        (template([{"Sequence": {"id": "A", "type_id": 0}}], {"x": {"id": "x", "ids": [1], "tokens": []}}), "'x' is"),
        (template([{"Sequence": {"id": "C", "type_id": 0}}], {}), "do not tell"),
        # These cost it time or memory.
        (normalizers(*[GROWING] * 9), "may make a text 1000000000 times longer; they may 64 times"),
        (normalizers({"type": "NFKC"}, {"type": "NFKD"}), "324 times longer"),
        (normalizers(*[{"type": "Strip"}] * 17), "a sequence of 17; it must be a list of at most 16"),
        (normalizers({"type": "Replace", "pattern": {"Regex": "(a+)+b"}, "content": ""}), "as CLIP's is"),
        (put("pre_tokenizer", {"type": "Split", "pattern": {"Regex": "(x*)*y"}}), "as CLIP's is"),
        (put("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "its normalizer is 'Precompiled'"),
        (added(MAX_ADDED), f"its added_tokens are {MAX_ADDED + 2}; they must be a list of at most {MAX_ADDED}"),
        (added(1, "x" * 1000), "its content must have 1 .. 256 characters"),
        (added(1, ""), "its content must have 1"),
        # These give other ids each time, or none that a text encoder has.
        (model(dropout=0.5), "its dropout is 0.5"),
        (model(vocab={"a": -1}), "the id of 'a' is -1"),
        (model(vocab={"a": 2**40}), "the id of 'a' is 1099511627776"),
        (model(vocab={"a": True}), "the id of 'a' is True"),
        (model(continuing_subword_prefix="##"), "its continuing_subword_prefix is '##'; CLIP's is empty"),
        (model(unk_token="[UNK]"), "its unk_token is '\\[UNK\\]', which is not in its vocabulary"),
        (model(merges=5), "its model has no vocab and merges"),
        (put("post_processor", {"type": "RobertaProcessing", "sep": ["a", -1], "cls": ["a", 1]}), "sep is"),
        (put("post_processor", None), "puts 0 tokens around a prompt"),
    ],
)  # fmt: skip
def test_what_is_not_handed_to_the_library(tmp_path: Path, change: Change, said: str) -> None:
    opened(tmp_path, DATA)
    with pytest.raises(BundleError, match=rf"tokenizer\.json .*{said}" if "puts" not in said else said):
        opened(tmp_path, changed(change))


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000, '{"model": "x"}', "\ufeff{}", '{"model": NaN}'])
def test_texts_that_are_no_tokenizer(tmp_path: Path, text: str) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer that can be read"):
        opened(tmp_path, text)


def test_a_file_that_is_too_long(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as f:
        f.truncate(MAX_TOKENIZER + 1)
    with pytest.raises(BundleError, match=f"it holds more than {MAX_TOKENIZER} bytes"):
        Tokenizer(tmp_path / "tokenizer.json", 77, PAD)


def test_a_pad_id_that_no_token_has(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="has no token of the id 70000"):
        opened(tmp_path, DATA, 70_000)


def test_what_clips_kin_hold_is_read(tmp_path: Path) -> None:
    """Other files of the same tokenizer: those of newer and older libraries, OpenCLIP's, with a template."""
    ends = [("<|startoftext|>", 698), ("<|endoftext|>", 699)]
    tokens = {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in ends}
    pieces = [{"SpecialToken": {"id": ends[0][0], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
              {"SpecialToken": {"id": ends[1][0], "type_id": 0}}]  # fmt: skip
    longer = r"<\|startoftext\|>|<\|endoftext\|>|" + PATTERN
    split = {"type": "Split", "pattern": {"Regex": longer}, "behavior": "Removed", "invert": True}
    expected = opened(tmp_path, DATA).tokens("a red Apple, 12 of them")
    for change in (
        template(pieces, tokens),
        lambda d: d["pre_tokenizer"]["pretokenizers"].__setitem__(0, split),
        lambda d: d.update(decoder=None, truncation=None, padding=None),
        lambda d: d["model"].update(merges=[" ".join(pair) for pair in d["model"]["merges"]]),
        added(1000),
        normalizers({"type": "NFC"}, {"type": "Strip", "strip_left": True, "strip_right": True},
                    {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}, {"type": "Lowercase"}),
        normalizers({"type": "NFKC"}, {"type": "Lowercase"}),
    ):  # fmt: skip
        found = opened(tmp_path, changed(change))
        assert (found.begin, found.end) == (698, 699)
        assert found.tokens("a red Apple, 12 of them") == expected


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        (PATTERN, True),
        (r"<\|startoftext\|>|<\|endoftext\|>|'s|[\p{L}]+|[^\s\p{L}\p{N}]+", True),
        (r"\s+", True),
        (r"[a-z]+", True),
        (r"(a|b)", False),
        (r"a+b", False),
        (r"\s+\s+", False),
        (r"[\p{L}]*", False),
        (r"a{1,1000}", False),
        (r"a|", False),
        (r"(?=a)", False),
        (r"\1", False),
        (r"\k<x>", False),
        (r"[[:alpha:]]", False),
        (r".", False),
        ("", False),
        ("a" * 600, False),
    ],
)
def test_patterns_that_take_no_longer_than_the_text(pattern: str, fits: bool) -> None:
    if fits:
        check_pattern({"Regex": pattern})
        tokenizers.Regex(pattern)
    else:
        with pytest.raises(ValueError, match="a pattern is"):
            check_pattern({"Regex": pattern})


def panicking() -> Any:
    """The library's tokenizer that panics whenever it cuts a text."""
    data = changed(put("normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": "b"}))
    return tokenizers.Tokenizer.from_str(json.dumps(data))


def test_a_panic_is_an_error() -> None:
    with pytest.raises(LibraryPanic, match="the library panicked: "), panics_caught():
        panicking().encode("a")


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, ValueError])
def test_what_is_no_panic_stays_what_it_is(raised: type[BaseException]) -> None:
    with pytest.raises(raised), panics_caught():
        raise raised


def test_a_panic_at_a_prompt_ends_that_call_alone(tmp_path: Path) -> None:
    """A server that catches ``Exception`` goes on."""
    good = opened(tmp_path, DATA)
    kept, good._backend = good._backend, panicking()
    with pytest.raises(PromptError, match="the tokenizer cannot cut 'a cat': the library panicked"):
        good.tokens("a cat")
    good._backend = kept
    assert good.tokens("a cat")


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, MemoryError])
def test_an_interrupt_is_no_prompt(tmp_path: Path, raised: type[BaseException]) -> None:
    class Interrupted:
        def encode(self, *_: Any, **__: Any) -> None:
            raise raised

    good = opened(tmp_path, DATA)
    good._backend = Interrupted()
    with pytest.raises(raised):
        good.tokens("a cat")


def test_a_hostile_tokenizer_prints_nothing(damaged: Callable[[], Path]) -> None:
    """It is refused before the library sees it, whose panics write on stderr."""
    root = damaged()
    path = root / "tokenizer.json"
    path.write_text(json.dumps(changed(template([{"SpecialToken": {"id": "x", "type_id": 0}}], {}))), encoding="utf-8")
    manifest = json.loads((root / "bundle.json").read_text(encoding="utf-8"))
    manifest["text"][0]["file"] |= {"size": path.stat().st_size, "sha256": sha256(path)}
    (root / "bundle.json").write_text(json.dumps(manifest), encoding="utf-8")
    code = "import sys; from edgediff.cli.main import main; sys.exit(main(['generate', 'x', '--model', sys.argv[1]]))"
    run = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert len(run.stderr.splitlines()) == 1
    assert "panicked" not in run.stderr


def test_the_most_added_tokens_take_no_long_time(tmp_path: Path) -> None:
    started = time.process_time()
    opened(tmp_path, changed(added(MAX_ADDED - 2)))
    assert time.process_time() - started < 10


def test_a_prompt_has_a_length(tiny_bundle: Path) -> None:
    with pytest.raises(PromptError, match="the prompt has 1000001 characters; it may have 1000000"):
        edgediff.load(tiny_bundle).stream("a" * 1_000_001)
    assert read_bundle(tiny_bundle).text[0].pad_id == PAD
