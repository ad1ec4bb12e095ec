"""Values that no one expects, and damage to a tree of JSON."""

from __future__ import annotations

import copy
import json
from random import Random
from typing import Any

# Written into JSON as they are: numbers that Python's own writer does not write.
LITERALS = {
    "@1e999": "1e999",
    "@-1e999": "-1e999",
    "@nan": "NaN",
    "@digits": "1" + "0" * 5000,
    "@400": "1" + "0" * 400,
    "@-0": "-0.0",
    "@tiny": "1e-400",
    "@deep": "[" * 500 + "]" * 500,
}
NUMBERS = (0, -1, 1, 2, 3, 5, 7, 16, 77, 255, 256, 1000, 4096, 10**5, 10**6, 10**8, 2**31 - 1, 2**31, 2**32, 2**63)
NUMBERS += (2**64, -(2**31), -(2**63), 0.5, -0.5, 1e-30, 1e-9, 1e9, 1e30, 3.0, 1.0000001)  # type: ignore[assignment]
TEXTS = (
    *("", " ", "x", "None", "null", "true", "0", "1", "-1", "nan", "cpu", "cuda", "float32", "int8", "bool", "string"),
    *("../secret.bin", "/etc/passwd", "/dev/zero", "C:\\x", "a/../../b", "./unet.onnx", "unet.onnx", "bundle.json"),
    *(
        "\ud800",
        "\x00",
        "a\x00b",
        "\x1b]0;owned\x07\x1b[2J",
        "line\nline",
        "\u202e",
        "é",
        "😀",
        "x" * 300,
        "x" * 100_000,
    ),
    *("ddim", "dpmpp_2m", "plms", "unipc", "deis_3", "heun", "batch", "latent_height", "{}", "%s", "$(id)", "`id`"),
)
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"": None}, [0] * 5, {"a": {"b": {}}}, *LITERALS)


def nasty(random: Random) -> Any:
    """One value that no one expects."""
    return copy.deepcopy(random.choice(random.choice((NUMBERS, TEXTS, OTHERS))))


def place(tree: Any, random: Random) -> tuple[Any, Any] | None:
    """A ``(container, key)``, found by walking down: a small object is as likely as a vocabulary of thousands."""
    node = tree
    while node:
        key = random.choice(list(node) if isinstance(node, dict) else range(len(node)))
        inside = node[key]
        if not isinstance(inside, (dict, list)) or not inside or random.random() < 0.2:
            return node, key
        node = inside
    return None


def damage(tree: Any, random: Random) -> str:
    """Change one place of a tree; tells what was done."""
    found = place(tree, random)
    if found is None:
        return "nothing to change"
    node, key = found
    old = node[key]
    how = random.choice(("nasty", "nasty", "nasty", "nudge", "delete", "swap", "wrap", "twin", "rename", "grow"))
    if how == "nudge" and isinstance(old, (int, float)) and not isinstance(old, bool):
        node[key] = random.choice((-old, old + 1, old - 1, old * 2, old * 10**6, old / 2, float(old), str(old), 0))
    elif how == "delete":
        del node[key]
    elif how == "swap":
        other, there = place(tree, random) or found
        node[key], other[there] = copy.deepcopy(other[there]), copy.deepcopy(old)
    elif how == "wrap":
        node[key] = random.choice(([old], {"a": old}, [old, old]))
    elif how == "twin" and isinstance(node, list):
        node.extend([copy.deepcopy(old)] * random.choice((1, 1, 10, 1000)))
    elif how == "rename" and isinstance(node, dict):
        node[str(random.choice(TEXTS))] = node.pop(key)
    elif how == "grow" and isinstance(old, str):
        node[key] = old + random.choice(("x", "\n", "\ud800", "/..", "é" * 50))
    else:
        how, node[key] = "nasty", nasty(random)
    new = node.get(key) if isinstance(node, dict) else ""
    return f"{how} at {key!r}, which was {repr(old)[:60]}, now {repr(new)[:60]}"


def written(tree: Any) -> bytes:
    """A tree as JSON; stand-ins for literals become themselves."""
    text = json.dumps(tree)
    for name, literal in LITERALS.items():
        text = text.replace(f'"{name}"', literal)
    return text.encode()
