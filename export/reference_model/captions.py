"""Captions name the object and the background, in varied wording."""

from __future__ import annotations

import random

from .glyphs import COLOURS, Glyph

WITH_COLOUR = (
    "{a} on a {c} background",
    "{a} on a {c} background",
    "{n} on a {c} background",
    "{n} on {c}",
    "{n}, {c} background",
    "{a} in front of a {c} background",
    "a {c} background with {a}",
    "an emoji of {a} on a {c} background",
    "a picture of {a}, {c} background",
)
WITHOUT_COLOUR = ("{n}", "{a}", "an emoji of {a}", "a picture of {a}")


def article(name: str, plural: bool) -> str:
    """Put the article before a name: ``an apple``; plurals stay bare."""
    if plural:
        return name
    return ("an " if name[0] in "aeio" else "a ") + name


def phrase(template: str, name: str, plural: bool, colour: str) -> str:
    """Fill a template with a name and a colour."""
    return template.format(a=article(name, plural), n=name, c=colour)


def caption(glyph: Glyph, colour: str, rng: random.Random, colourless: float = 0.1) -> str:
    """Draw a random caption of the pair; with probability ``colourless`` it leaves the colour open."""
    templates = WITHOUT_COLOUR if rng.random() < colourless else WITH_COLOUR
    return phrase(rng.choice(templates), rng.choice(glyph.names), glyph.plural, colour)


def all_captions(glyphs: list[Glyph]) -> list[str]:
    """List every caption once, sorted: the tokenizer's training text."""
    out = set()
    for glyph in glyphs:
        for name in glyph.names:
            for colour in COLOURS:
                for template in WITH_COLOUR + WITHOUT_COLOUR:
                    out.add(phrase(template, name, glyph.plural, colour))
    return sorted(out)
