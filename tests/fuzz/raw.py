"""Damage to bytes: anywhere, in the fields of a protobuf message, in a safetensors header."""

from __future__ import annotations

import json
import struct
from random import Random

from .values import NUMBERS, TEXTS, damage, written

PIECES = (
    b"",
    b"\x00",
    b"\xff" * 8,
    b"{",
    b"[" * 3000,
    b'"',
    b"\xef\xbb\xbf",
    b"NaN",
    b"1e999",
    b"\\ud800",
    b"\x80" * 12,
)
VARINTS = (0, 1, 2, 7, 127, 128, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1)


def battered(data: bytes, random: Random) -> tuple[bytes, str]:
    """Bytes with one to eight changes anywhere."""
    out = bytearray(data)
    said = []
    for _ in range(random.choice((1, 1, 2, 8))):
        at = random.randrange(len(out) + 1)
        how = random.choice(("flip", "flip", "byte", "cut", "drop", "insert", "repeat", "zeros", "splice"))
        size = min(random.choice((1, 4, 64, 4096)), len(out) - at)
        if how == "flip" and at < len(out):
            out[at] ^= 1 << random.randrange(8)
        elif how == "byte" and at < len(out):
            out[at] = random.randrange(256)
        elif how == "cut":
            del out[at:]
        elif how == "drop":
            del out[at : at + size]
        elif how == "insert":
            out[at:at] = random.choice(PIECES)
        elif how == "repeat":
            out[at:at] = out[at : at + size] * random.choice((1, 3, 50))
        elif how == "zeros":
            out[at : at + size] = bytes(size)
        else:
            start = random.randrange(len(out) + 1)
            out[at : at + size] = out[start : start + size]
        said.append(f"{how} at {at}")
    return bytes(out), ", ".join(said)


def varint(value: int) -> bytes:
    out = bytearray()
    value %= 1 << 64
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def fields(data: bytes) -> list[tuple[int, int, bytes]] | None:
    """``(number, wire type, payload)`` of a message; None where it is none. A varint's payload is its own bytes."""
    out, at = [], 0

    def number(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = data[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128 or shift > 63:
                return value, at

    try:
        while at < len(data):
            key, at = number(at)
            kind, start = key & 7, at
            if not key >> 3 or kind not in (0, 1, 2, 5):
                return None
            if kind == 0:
                _, at = number(at)
            elif kind == 2:
                size, start = number(at)
                at = start + size
            else:
                at += 8 if kind == 1 else 4
            if at > len(data):
                return None
            out.append((key >> 3, kind, data[start:at]))
    except IndexError:
        return None
    return out


def message(parts: list[tuple[int, int, bytes]]) -> bytes:
    out = bytearray()
    for number, kind, payload in parts:
        out += varint(number << 3 | kind) + (varint(len(payload)) if kind == 2 else b"") + payload
    return bytes(out)


def rewired(data: bytes, random: Random, depth: int = 0) -> tuple[bytes, str]:
    """A protobuf message with one field changed, somewhere inside; lengths around it stay right."""
    parts = fields(data)
    if not parts:
        return battered(data, random)
    at = random.randrange(len(parts))
    number, kind, payload = parts[at]
    if kind == 2 and depth < 12 and random.random() < 0.85 and fields(payload):
        payload, said = rewired(payload, random, depth + 1)
        parts[at] = number, kind, payload
        return message(parts), f"{number}.{said}"
    how = random.choice(("value", "value", "value", "delete", "double", "number", "swap"))
    if how == "delete":
        del parts[at]
    elif how == "double":
        parts[at:at] = [parts[at]] * random.choice((1, 1, 100))
    elif how == "number":
        parts[at] = random.choice((number + 1, max(1, number - 1), random.randrange(1, 30))), kind, payload
    elif how == "swap":
        other = random.randrange(len(parts))
        parts[at], parts[other] = parts[other], parts[at]
    elif kind == 0:
        parts[at] = number, kind, varint(random.choice((*VARINTS, random.randrange(25))))
    elif kind == 2 and random.random() < 0.5:
        parts[at] = number, kind, str(random.choice(TEXTS)).encode("utf-8", "replace")
    elif kind == 2:
        parts[at] = number, kind, battered(payload, random)[0]
    else:
        size = 8 if kind == 1 else 4
        value = float(random.choice((0, -1, 1e30, float("nan"), float("inf"))))
        parts[at] = number, kind, struct.pack("<d" if size == 8 else "<f", value)
    return message(parts), f"{number}: {how}"


def reheaded(data: bytes, random: Random) -> tuple[bytes, str]:
    """A safetensors file with its header changed, or its length, or its numbers."""
    how = random.choice(("tree", "tree", "tree", "length", "bytes", "numbers", "empty"))
    size = int.from_bytes(data[:8], "little")
    head, body = data[8 : 8 + size], data[8 + size :]
    if how == "tree":
        tree = json.loads(head)
        said = damage(tree, random)
        head = written(tree)
        return len(head).to_bytes(8, "little") + head + body, said
    if how == "length":
        length = random.choice((*(n for n in NUMBERS if isinstance(n, int)), size + 1, size - 1)) % 2**64
        return length.to_bytes(8, "little") + head + body, f"a header of {length} bytes"
    if how == "numbers" and body:
        at = random.randrange(len(body))
        patch = random.choice((b"\xff" * 4, b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", b"\x00\x7c"))
        return data[:8] + head + body[:at] + patch + body[at + len(patch) :], f"numbers at {at}"
    if how == "empty":
        return data[: random.choice((0, 7, 8, 9, 8 + size))], "cut"
    return battered(data, random)
