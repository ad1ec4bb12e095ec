r"""Weighted prompts: text -> spans with a weight -> chunks of tokens -> weighted embeddings.

The syntax is that of the AUTOMATIC1111 web UI: ``(x)`` weighs 1.1 times more, ``[x]`` 1.1 times less, ``(x:1.2)`` 1.2
times more; brackets nest, ``\(`` is the character itself, and the word ``BREAK`` begins a new chunk.
https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features#attentionemphasis
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, get_args

import numpy as np

from ..arrays import Float32
from ..errors import ArgumentError, PromptError, choices

PromptSyntax = Literal["a1111", "plain"]
SYNTAXES: tuple[str, ...] = get_args(PromptSyntax)
MAX_WEIGHT = 100
BRACKET_FACTOR = 1.1  # what one pair of brackets multiplies or divides by
DIGITS = 9  # weights are rounded, so that (([[x]])) weighs exactly 1 again and is one span with its neighbours

CLOSES = {")": "(", "]": "["}
# Everything that is not text, leftmost first: an escape takes its character before that counts as a bracket.
_MARK = re.compile(r"\\[()\[\]\\]|[()\[\]:|]|\bBREAK\b")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_MEANT_AS_NUMBER = re.compile(r"(?=[^0-9]*[0-9])[0-9.,+\-eE\s]+|\s*[+-]?(?:nan|inf|infinity)\s*", re.IGNORECASE)
_NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>", re.IGNORECASE)


@dataclass(frozen=True)
class Span:
    """A span is a stretch of the prompt with one weight; it is never empty."""

    text: str
    weight: float
    offsets: tuple[int, ...]  # the index in the prompt of every character of text

    @property
    def start(self) -> int:
        """The index in the prompt of the first character."""
        return self.offsets[0]


Piece = tuple[str, int, int]  # a mark, or "" for text; where it begins and ends in the prompt


def parse(prompt: str, syntax: str = "a1111", what: str = "prompt") -> list[list[Span]]:
    """The sections of ``prompt``, split at BREAK; a section without text is an empty list.

    Neighbours of equal weight are one span, so a prompt without syntax is tokenised whole. The syntax ``plain``
    interprets nothing: one span. Errors call the prompt ``what``.

    Raises:
        PromptError: brackets that do not match, a weight that is not a number or beyond ``MAX_WEIGHT``.
        ArgumentError: an unknown syntax.
    """
    if syntax not in SYNTAXES:
        raise ArgumentError(f"no prompt syntax {syntax!r}; choose from {choices(SYNTAXES)}")
    if syntax == "plain":
        return [_spans(prompt, [(1.0, 0, len(prompt))] if prompt else [])]
    if network := _NETWORK.search(prompt):
        raise PromptError(
            f"{network[0][:60]!r} at character {network.start() + 1} of the {what} names weights; "
            "a prompt cannot load any"
        )
    pieces, factors = _pieces(prompt, what)
    sections: list[list[tuple[float, int, int]]] = [[]]
    weights = [1.0]  # of the brackets around, outermost first
    for mark, start, end in pieces:
        if mark == "BREAK":
            sections.append([])
        elif mark in CLOSES:
            weights.pop()
        elif mark:
            weights.append(weights[-1] * factors[start])
            if round(abs(weights[-1]), DIGITS) > MAX_WEIGHT:
                raise PromptError(
                    f"the nested brackets at character {start + 1} of the {what} multiply to a weight of "
                    f"{weights[-1]:.6g}; it must be {-MAX_WEIGHT} .. {MAX_WEIGHT}: nest fewer or lower their weights"
                )
        else:
            sections[-1].append((round(weights[-1], DIGITS), start, end))
    return [_spans(prompt, section) for section in sections]


def _spans(prompt: str, stretches: Iterable[tuple[float, int, int]]) -> list[Span]:
    spans = []
    for weight, run in groupby(stretches, key=lambda stretch: stretch[0]):
        offsets = tuple(i for _, start, end in run for i in range(start, end))
        spans.append(Span("".join(prompt[i] for i in offsets), weight, offsets))
    return spans


def _pieces(prompt: str, what: str) -> tuple[list[Piece], dict[int, float]]:
    """Text, brackets and BREAKs in order, and the factor of every opening bracket by its index."""
    pieces: list[Piece] = []
    factors: dict[int, float] = {}
    opened: list[int] = []  # brackets still open, outermost first
    last = 0  # where the text begins that the next mark ends
    for match in _MARK.finditer(prompt):
        mark, at, end = match[0], match.start(), match.end()
        factor = None
        if mark == "|":  # text, but for where it stands
            if opened and prompt[opened[-1]] == "[":
                raise _refuse("alternation ([a|b])", opened[-1], what)
            continue
        if mark in CLOSES:
            if not opened:
                raise PromptError(
                    f"the {mark} at character {at + 1} of the {what} closes nothing; "
                    f"remove it, or write \\{mark} for the character itself"
                )
            opener = opened.pop()
            if prompt[opener] != CLOSES[mark]:
                raise PromptError(
                    f"the {mark} at character {at + 1} of the {what} does not match the {prompt[opener]} at character "
                    f"{opener + 1}; close that first, or write \\{mark} for the character itself"
                )
            if mark == "]" and prompt.startswith(":", last, at) and _NUMBER.fullmatch(prompt[last + 1 : at].strip()):
                raise _refuse("scheduling ([from:to:when])", opener, what)
            # Text begins at a colon where no other mark stands between that and the bracket.
            if mark == ")" and prompt.startswith(":", last, at):
                factor = _factor(prompt[last + 1 : at], last + 1, what)
            factors[opener] = factor if factor is not None else BRACKET_FACTOR if mark == ")" else 1 / BRACKET_FACTOR
        if last < at and factor is None:
            pieces.append(("", last, at))
        if mark == ":":
            last = at  # text, unless the closing bracket shows a weight behind it
        elif mark[0] == "\\":
            last = at + 1  # the backslash goes, its character is text
        else:
            pieces.append((mark, at, end))
            last = end
        if mark in CLOSES.values():
            opened.append(at)
    if opened:
        bracket = prompt[opened[0]]
        raise PromptError(
            f"the {bracket} at character {opened[0] + 1} of the {what} is never closed; "
            f"close it, or write \\{bracket} for the character itself"
        )
    if last < len(prompt):
        pieces.append(("", last, len(prompt)))
    return pieces, factors


def _refuse(kind: str, bracket: int, what: str) -> PromptError:
    """What A1111 reads in square brackets besides weights; as words it would be a wrong picture."""
    return PromptError(
        f"the [ at character {bracket + 1} of the {what} holds {kind}, which is not supported; "
        r"write \[ and \] for brackets that are text"
    )


def _factor(tail: str, at: int, what: str) -> float | None:
    """The weight that ``tail``, the text from index ``at`` to a closing bracket, stands for; None for ordinary text."""
    number = tail.strip()
    place = at + 1 + len(tail) - len(tail.lstrip())
    if not _NUMBER.fullmatch(number):
        if _MEANT_AS_NUMBER.fullmatch(tail):
            raise PromptError(
                f"the weight {number[:40]!r} at character {place} of the {what} is not a number; write it like 1.2, "
                r"or write \( and \) for brackets that are text"
            )
        return None
    factor = float(number)
    if abs(factor) > MAX_WEIGHT:
        raise PromptError(
            f"the weight {number[:40]!r} at character {place} of the {what} is too large; "
            f"it must be {-MAX_WEIGHT} .. {MAX_WEIGHT}"
        )
    return factor


def emphasise(hidden: Float32, weights: Float32) -> Float32:
    """``hidden``, float32 (tokens, width), with every token's vector times its weight, float32 (tokens,).

    The whole is then scaled so that the mean over all values is what it was (AUTOMATIC1111's "Original" emphasis).
    That is left out where the factor is not in 0.5 .. 2 - negative or not finite, too: the mean is then so near zero
    that its ratio says nothing of the vectors' size. With all weights 1, ``hidden`` itself comes back.
    """
    if (weights == 1).all():
        return hidden
    out: Float32 = np.multiply(hidden, weights[:, None], dtype=np.float32)
    before, after = (float(values.mean(dtype=np.float64)) for values in (hidden, out))
    if after != 0 and 0.5 <= before / after <= 2:
        out *= np.float32(before / after)
    return out
