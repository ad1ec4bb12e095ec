"""Weighted prompts: the syntax, its errors, the places of characters, chunks, and emphasis in closed form."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest

from edgediff.errors import ArgumentError, PromptError
from edgediff.prompts.chunks import Token, chunk, limit, pack
from edgediff.prompts.weights import MAX_WEIGHT, SYNTAXES, Span, emphasise, parse

SIZE = 75
COMMA = 267


def weighted(prompt: str) -> list[list[tuple[str, float]]]:
    return [[(span.text, span.weight) for span in section] for section in parse(prompt)]


@pytest.mark.parametrize(
    ("prompt", "spans"),
    [
        # No syntax: one span with the same text.
        ("", []),
        ("a red apple", [("a red apple", 1)]),
        ("a, b; {c} <d> 16:9 C:\\dir e^2", [("a, b; {c} <d> 16:9 C:\\dir e^2", 1)]),
        ("  a\n\tb  ", [("  a\n\tb  ", 1)]),
        # Brackets, and how they nest.
        ("(x)", [("x", 1.1)]),
        ("[x]", [("x", 0.909090909)]),
        ("((x))", [("x", 1.21)]),
        ("[[x]]", [("x", 0.826446281)]),
        ("a (b:1.2) [c] ((d))", [("a ", 1), ("b", 1.2), (" ", 1), ("c", 0.909090909), (" ", 1), ("d", 1.21)]),
        ("(a (b) c)", [("a ", 1.1), ("b", 1.21), (" c", 1.1)]),
        ("(a [b] (c:2):3)", [("a ", 3), ("b", 2.727272727), (" ", 3), ("c", 6)]),
        ("()", []),
        ("a()b[]c(:1.5)d", [("abcd", 1)]),
        # Numbers.
        ("(x:1.2)", [("x", 1.2)]),
        ("(x:2)", [("x", 2)]),
        ("(x:2.)", [("x", 2)]),
        ("(x:.5)", [("x", 0.5)]),
        ("(x:+1.5)", [("x", 1.5)]),
        ("(x:-1.5)", [("x", -1.5)]),
        ("(x:0)", [("x", 0)]),
        ("(x: 1.2\n)", [("x", 1.2)]),
        ("(x :1.2)", [("x ", 1.2)]),
        ("(x:100)", [("x", 100)]),
        ("(x:-100)", [("x", -100)]),
        ("((([[[(x:100)]]])))", [("x", 100)]),  # 100.00000000000003 before rounding
        ("((x:2):.5)", [("x", 1)]),
        # Colons that are text.
        ("(scene: night)", [("scene: night", 1.1)]),
        ("(a:b:1.2)", [("a:b", 1.2)]),
        ("(ratio 16:9 wide)", [("ratio 16:9 wide", 1.1)]),
        ("(x:)", [("x:", 1.1)]),
        ("(x: , )", [("x: , ", 1.1)]),
        ("(x::1.2)", [("x:", 1.2)]),
        ("(x:1.2:)", [("x:1.2:", 1.1)]),
        ("[x:y]", [("x:y", 0.909090909)]),
        ("a|b (c|d)", [("a|b ", 1.0), ("c|d", 1.1)]),
        (r"\[a|b\] \[a:0.5\]", [("[a|b] [a:0.5]", 1.0)]),
        ("[x:1.2.3]", [("x:1.2.3", 0.909090909)]),
        ("x:1.2", [("x:1.2", 1)]),
        ("(x:(1.2))", [("x:", 1.1), ("1.2", 1.21)]),
        ("(x:1(y).2)", [("x:1", 1.1), ("y", 1.21), (".2", 1.1)]),
        ("(x:1.2\\))", [("x:1.2)", 1.1)]),
        ("(x:\\)1.2)", [("x:)1.2", 1.1)]),
        ("(x:1.2a)", [("x:1.2a", 1.1)]),
        ("(x:१)", [("x:१", 1.1)]),
        # Escapes.
        (r"\(x\)", [("(x)", 1)]),
        (r"\[x\]", [("[x]", 1)]),
        (r"a\\b", [("a\\b", 1)]),
        (r"\\(x)", [("\\", 1), ("x", 1.1)]),
        (r"\\\(x", [("\\(x", 1)]),
        (r"(a\(b\):1.3)", [("a(b)", 1.3)]),
        (r"(x\:1.3)", [("x\\", 1.3)]),
        (r"\n \x \, \:", [(r"\n \x \, \:", 1)]),
        ("end\\", [("end\\", 1)]),
        # Neighbours of equal weight are one span.
        ("(a)(b)", [("ab", 1.1)]),
        ("a (b:1.0) c", [("a b c", 1)]),
        ("a ([b]) c", [("a b c", 1)]),
        ("a (([[b]])) c", [("a b c", 1)]),
        ("a [[((([b])))]] c", [("a b c", 1)]),
        ("((a))(b:1.21)", [("ab", 1.21)]),
        ("(a:2)(b:3)", [("a", 2), ("b", 3)]),
    ],
)
def test_syntax(prompt: str, spans: list[tuple[str, float]]) -> None:
    assert weighted(prompt) == [spans]


@pytest.mark.parametrize(
    ("prompt", "sections"),
    [
        ("a BREAK b", [[("a ", 1)], [(" b", 1)]]),
        ("BREAK", [[], []]),
        ("BREAK a BREAKBREAK b BREAK", [[], [(" a BREAKBREAK b ", 1)], []]),
        ("a BREAK BREAK b", [[("a ", 1)], [(" ", 1)], [(" b", 1)]]),
        ("(a BREAK b:1.3)", [[("a ", 1.3)], [(" b", 1.3)]]),
        ("[a(BREAK)b]", [[("a", 0.909090909)], [("b", 0.909090909)]]),
        ("(a:BREAK 2)", [[("a:", 1.1)], [(" 2", 1.1)]]),
        (r"\(BREAK,", [[("(", 1)], [(",", 1)]]),
        ("break Break BREAKS BREAK_ xBREAK", [[("break Break BREAKS BREAK_ xBREAK", 1)]]),
    ],
)
def test_break(prompt: str, sections: list[list[tuple[str, float]]]) -> None:
    assert weighted(prompt) == sections


@pytest.mark.parametrize("prompt", ["", "a (b:1.2) [c] \\(d BREAK e", "((", ")", "(x:1.2.3)"])
def test_plain_interprets_nothing(prompt: str) -> None:
    spans = [Span(prompt, 1.0, tuple(range(len(prompt))))] if prompt else []
    assert parse(prompt, "plain") == [spans]


def test_offsets() -> None:
    prompt = r"a \(b (c)\\ BREAK [d:f]e"
    (a, c, back), (space, d, e) = parse(prompt)
    assert (a.text, a.offsets) == ("a (b ", (0, 1, 3, 4, 5))
    assert (c.text, c.offsets, c.start) == ("c", (7,), 7)
    assert (back.text, back.offsets) == ("\\ ", (10, 11))
    assert (space.text, space.start) == (" ", 17)
    assert (d.text, d.start) == ("d:f", 19)
    assert (e.text, e.start) == ("e", 23)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a [b:1.2]", r"the \[ at character 3 of the prompt holds scheduling .*write \\\[ and \\\]"),
        ("[a:b: 10 ]", r"the \[ at character 1 of the prompt holds scheduling"),
        ("([a|b])", r"the \[ at character 2 of the prompt holds alternation"),
        ("(x:nan)", r"the weight 'nan' at character 4 of the prompt is not a number"),
        ("(x: -inf)", r"the weight '-inf' at character 5 of the prompt is not a number"),
        ("a <lora:toy:0.8>", r"'<lora:toy:0.8>' at character 3 of the prompt names weights"),
        ("a (b", r"the \( at character 3 of the prompt is never closed; close it, or write \\\( for"),
        ("a [b", r"the \[ at character 3 of the prompt is never closed; close it, or write \\\[ for"),
        ("([((", r"the \( at character 1 of the prompt is never closed"),
        ("(a (b)", r"the \( at character 1 of the prompt is never closed"),
        (r"(a\)", r"the \( at character 1 .* never closed"),
        ("a smile :)", r"the \) at character 10 of the prompt closes nothing; remove it, or write \\\) for"),
        ("(a)) b", r"the \) at character 4 .* closes nothing"),
        ("a] b", r"the \] at character 2 .* closes nothing; .* write \\\] for"),
        ("x:1.2)", r"the \) at character 6 .* closes nothing"),
        ("(x]", r"the \] at character 3 of the prompt does not match the \( at character 1; .* write \\\] for"),
        ("[x:1.2)", r"the \) at character 7 of the prompt does not match the \[ at character 1"),
        ("([x)]", r"the \) at character 4 of the prompt does not match the \[ at character 2"),
        ("(x:1.2.3)", r"the weight '1\.2\.3' at character 4 of the prompt is not a number; write it like 1\.2"),
        ("(x:1,2)", "the weight '1,2' at character 4 .* not a number"),
        ("(x:--1)", "the weight '--1' at character 4 .* not a number"),
        ("a (x: 1e2 )", "the weight '1e2' at character 7 .* not a number"),
        ("(x:1E2)", "the weight '1E2' at character 4 .* not a number"),
        ("(x:1\n2)", r"the weight '1\\n2' at character 4 .* not a number"),
        ("(x:1 2)", "the weight '1 2' at character 4 .* not a number"),
        ("(x:5%:1-)", "the weight '1-' at character 7 .* not a number"),
        ("(x:+ 1)", r"the weight '\+ 1' at character 4 .* not a number"),
        ("(x:100.01)", r"the weight '100\.01' at character 4 of the prompt is too large; it must be -100 \.\. 100"),
        ("(x:-101)", "the weight '-101' at character 4 .* too large"),
        ("(x:" + "9" * 999 + ")", "the weight '9{40}' at character 4 .* too large"),
        ("a ((x:50):50)", "at character 4 of the prompt multiply to a weight of 2500; it must be -100 .. 100"),
        ("(((x:.01):100):100)", "at character 2 .* multiply to a weight of 10000;"),  # the outer brackets alone
        ("(a (b:-100))", "at character 4 .* multiply to a weight of -110;"),
        ("(" * 49 + "x" + ")" * 49, r"at character 49 .* multiply to a weight of 106\.719;"),
    ],
)
def test_errors(prompt: str, message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        parse(prompt)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_the_most_that_brackets_may_weigh() -> None:
    ((span,),) = parse("(" * 48 + "x" + ")" * 48)
    assert span.weight == pytest.approx(1.1**48, abs=1e-9)
    assert 90 < span.weight <= MAX_WEIGHT


@pytest.mark.parametrize("syntax", ["A1111", "compel", "", None])
def test_unknown_syntax(syntax: str) -> None:
    with pytest.raises(ArgumentError, match=f"no prompt syntax {syntax!r}; choose from a1111, plain"):
        parse("a", syntax)
    assert SYNTAXES == ("a1111", "plain")


def random_prompts(n: int) -> list[str]:
    rng = random.Random(0)
    parts = [*"()[]:\\ a1.", "BREAK", ":1.1)", "(a)"]
    return ["".join(rng.choices(parts, k=rng.randrange(14))) for _ in range(n)]


def characters(prompt: str) -> list[tuple[int, str, float]]:
    """(place in the prompt, character, weight) of everything that is text."""
    spans = [span for section in parse(prompt) for span in section]
    return [(i, c, span.weight) for span in spans for i, c in zip(span.offsets, span.text, strict=True)]


def test_random_prompts_parse_or_raise_prompt_error() -> None:
    parsed = 0
    for prompt in random_prompts(20_000):
        try:
            sections = parse(prompt)
        except PromptError:
            continue
        parsed += 1
        places = [i for i, _, _ in characters(prompt)]
        assert places == sorted(set(places))
        for section in sections:
            assert all(before.weight != after.weight for before, after in pairwise(section))
            for span in section:
                assert span.text
                assert span.text == "".join(prompt[i] for i in span.offsets)
                assert span.start == span.offsets[0]
                assert abs(span.weight) <= MAX_WEIGHT
        # One more pair of brackets changes weights, by its factor, and nothing else. The .z keeps a last \, :1 or BREAK
        # of the prompt from the bracket.
        for opened, closed, factor in ("[", ".z]", 1 / 1.1), ("(", ".z)", 1.1), ("(", ".z:-0.5)", -0.5):
            *inside, _, last = characters(opened + prompt + closed)
            assert last == (len(prompt) + 2, "z", pytest.approx(factor))
            for (i, c, weight), (j, d, whole) in zip(inside, characters(prompt), strict=True):
                assert (i, c) == (j + 1, d)
                assert weight == pytest.approx(whole * factor, abs=1e-8)
    assert parsed > 4_000


def test_escaped_text_is_plain_text() -> None:
    for text in random_prompts(2_000):
        text = text.replace("BREAK", "break")
        ((span,),) = parse(re.sub(r"[\\()\[\]]", r"\\\g<0>", text) + "!")
        assert (span.text, span.weight) == (text + "!", 1)


@pytest.mark.parametrize(
    ("prompt", "weight"),
    [
        ("[" * 10_000 + "x" + "]" * 10_000, 0),
        ("([" * 10_000 + "x" + "])" * 10_000, 1),
        ("(" * 40 + "[" * 40 + "x" + "]" * 40 + ")" * 40, 1),
        ("()" * 100_000 + "x", 1),
        ("(x" + ":1" * 100_000 + " )", 1),
        ("(" * 100_000, None),
        ("(" * 10_000 + "x" + ")" * 10_000, None),
        ("(" * 10_000 + "x" + ":0)" * 10_000, 0),
        ("(x:" + "1" * 100_000 + "a)", 1.1),
        ("(x:" + "." * 100_000 + ")", 1.1),
        ("(x:" + " " * 100_000 + ")", 1.1),
        ("(x:" + "0" * 100_000 + ".5)", 0.5),
        ("(x:" + "1." * 50_000 + ")", None),
        ("\\" * 100_000 + "x", 1),
    ],
)
def test_large_prompts(prompt: str, weight: float | None) -> None:
    # Quadratic time or recursion would not come to an end here.
    if weight is None:
        with pytest.raises(PromptError):
            parse(prompt)
    else:
        (section,) = parse(prompt)
        assert section[-1].weight == weight


def tokens(ids: Sequence[int]) -> list[Token]:
    return [Token(id, 1.0, 10 * i) for i, id in enumerate(ids)]


def lengths(chunks: list[list[Token]]) -> list[int]:
    return [len(one) for one in chunks]


@pytest.mark.parametrize(
    ("sections", "sizes"),
    [
        ([], [0]),
        ([0], [0]),
        ([0, 0, 0], [0]),
        ([1], [1]),
        ([75], [75]),
        ([76], [75, 1]),
        ([150], [75, 75]),
        ([151], [75, 75, 1]),
        ([3, 4], [3, 4]),
        ([0, 3, 0, 0, 4, 0], [3, 4]),
        ([75, 75], [75, 75]),
        ([76, 2], [75, 1, 2]),
    ],
)
def test_chunks(sections: list[int], sizes: list[int]) -> None:
    made = [tokens(range(1000, 1000 + n)) for n in sections]
    chunks = chunk(made, SIZE, COMMA)
    assert lengths(chunks) == sizes
    assert [t for one in chunks for t in one] == [t for section in made for t in section]


@pytest.mark.parametrize(
    ("commas", "length", "backtrack", "sizes"),
    [
        ([70], 80, 20, [71, 9]),
        ([55], 80, 20, [56, 24]),  # the first of the last 20
        ([54], 80, 20, [75, 5]),  # the one before
        ([54], 80, 21, [55, 25]),
        ([60, 70], 80, 20, [71, 9]),  # the last comma counts
        ([74], 80, 20, [75, 5]),  # nothing stands behind it
        ([73], 80, 20, [74, 6]),
        ([70], 75, 20, [75]),  # no overflow
        ([70], 76, 20, [71, 5]),
        ([70, 75], 80, 20, [75, 5]),  # the phrase ends with the chunk
        ([70], 80, 0, [75, 5]),
        ([74], 80, 0, [75, 5]),
        ([70], 80, 1, [75, 5]),
        ([0], 80, 200, [1, 75, 4]),
        ([0], 80, 75, [1, 75, 4]),
        ([0], 80, 74, [75, 5]),
        ([70, 140], 160, 20, [71, 70, 19]),
        ([70], 160, 200, [71, 75, 14]),  # a comma of the chunk before does not count
        (range(160), 160, 20, [75, 75, 10]),
    ],
)
def test_comma_backtracking(commas: Sequence[int], length: int, backtrack: int, sizes: list[int]) -> None:
    section = tokens([COMMA if i in commas else 1000 + i for i in range(length)])
    chunks = chunk([section], SIZE, COMMA, backtrack)
    assert lengths(chunks) == sizes
    assert [t for one in chunks for t in one] == section
    assert lengths(chunk([section], SIZE)) == [min(75, length - i) for i in range(0, length, 75)]


def test_random_chunks_lose_nothing() -> None:
    rng = random.Random(1)
    for _ in range(3_000):
        sections = [tokens(rng.choices([COMMA, 1, 2, 3], k=rng.randrange(20))) for _ in range(rng.randrange(4))]
        size = rng.randrange(1, 8)
        chunks = chunk(sections, size, COMMA, rng.randrange(10))
        assert [t for one in chunks for t in one] == [t for section in sections for t in section]
        assert all(1 <= n <= size for n in lengths(chunks)) or chunks == [[]]


def test_chunk_size() -> None:
    assert lengths(chunk([tokens([COMMA, 1, COMMA])], 1, COMMA)) == [1, 1, 1]
    with pytest.raises(ArgumentError, match="size is 0; a chunk must take at least 1 token"):
        chunk([tokens([1])], 0)


def test_limit() -> None:
    chunks = chunk([tokens(range(20))], 8)
    assert limit(chunks, None) == (chunks, None)
    assert limit(chunks, 3) == (chunks, None)
    assert limit(chunks, 4) == (chunks, None)
    assert limit(chunks, 2) == (chunks[:2], 160)
    assert limit(chunks, 1) == (chunks[:1], 80)
    assert limit([[]], 1) == ([[]], None)
    for few in (0, -1):
        with pytest.raises(ArgumentError, match=f"max_chunks is {few}; it must be at least 1, or None"):
            limit(chunks, few)


def test_pack() -> None:
    ids, weights = pack([Token(5, 1.5, 0), Token(6, -0.5, 2)], 4, begin=1, end=2, pad=3)
    assert ids.tolist() == [1, 5, 6, 2, 3, 3]
    assert weights.tolist() == [1, 1.5, -0.5, 1, 1, 1]
    assert (ids.dtype, weights.dtype) == (np.int64, np.float32)
    assert pack([], 2, 1, 2, 3)[0].tolist() == [1, 2, 3, 3]
    full = pack([Token(5, 2.0, 0)] * 2, 2, 1, 2, 3)
    assert [full[0].tolist(), full[1].tolist()] == [[1, 5, 5, 2], [1, 2, 2, 1]]
    with pytest.raises(ArgumentError, match="the chunk has 3 tokens; it must have at most 2"):
        pack([Token(5, 1.0, 0)] * 3, 2, 1, 2, 3)


def f32(values: object) -> np.ndarray:
    return np.array(values, np.float32)


def test_emphasise_keeps_the_mean() -> None:
    hidden = f32([[1, 3], [2, 2], [0, 4]])  # mean 2
    out = emphasise(hidden, f32([1, 2, 1.5]))  # [[1, 3], [4, 4], [0, 6]], mean 3
    np.testing.assert_allclose(out, f32([[1, 3], [4, 4], [0, 6]]) * (2 / 3), rtol=1e-6)
    assert out.dtype == np.float32
    assert hidden.tolist() == [[1, 3], [2, 2], [0, 4]]


def test_emphasise_on_an_encoder_sized_array() -> None:
    rng = np.random.default_rng(0)
    hidden = (rng.standard_normal((77, 768)) + 0.2).astype(np.float32)
    weights = rng.uniform(0.7, 1.4, 77).astype(np.float32)
    out = emphasise(hidden, weights)
    assert out.shape == (77, 768)
    assert out.dtype == np.float32
    assert float(out.mean(dtype=np.float64)) == pytest.approx(float(hidden.mean(dtype=np.float64)), rel=1e-6)
    ratio = out / hidden / weights[:, None]
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)


def test_emphasise_with_weights_of_one_is_the_identity() -> None:
    hidden = f32([[1, 3], [2, 2]])
    assert emphasise(hidden, np.ones(2, np.float32)) is hidden


@pytest.mark.parametrize(
    ("hidden", "weights", "scale"),
    [
        ([[1, 1], [1, 1]], [2, 2], 0.5),  # on the edges
        ([[1, 1], [1, 1]], [0.5, 0.5], 2),
        ([[1, 1], [1, 1]], [2.1, 2.1], 1),  # just outside
        ([[1, 1], [1, 1]], [0.45, 0.45], 1),
        ([[3, -1], [1, 1]], [1, -2], 1),  # mean 1 -> -0.5: negative
        ([[3, 3], [-2, -2]], [1, 1.4], 1),  # 0.5 -> 0.1
        ([[1, -1], [1, -1]], [1, 2], 1),  # 0 -> 0
        ([[1, 1], [-2, -2]], [2, 1], 1),  # -0.5 -> 0
        ([[2, 2], [-2, -2]], [2, 1], 1),  # 0 -> 1
        ([[-1, -1], [-1, -1]], [1, 1.5], 0.8),  # both negative: a factor as any other
        ([[1, 1], [1, 1]], [0, 0], 1),
    ],
)
def test_emphasise_leaves_the_mean_where_it_says_nothing(
    hidden: list[list[float]], weights: list[float], scale: float
) -> None:
    expected = f32(hidden) * f32(weights)[:, None] * scale
    np.testing.assert_allclose(emphasise(f32(hidden), f32(weights)), expected, rtol=1e-6)
