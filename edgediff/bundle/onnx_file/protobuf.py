"""Protocol buffers are read field by field from an open file; what is not wanted is skipped by a seek, never read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types
MAX_VARINT = 10  # bytes
MAX_NUMBER = (1 << 29) - 1  # of a field
MAX_TEXT = 1 << 16  # bytes of a name; nobody writes longer ones


class WireError(ValueError):
    """The bytes are no protocol buffer."""


@dataclass(frozen=True)
class Field:
    """A field of a message: its number, and the number it holds or where its bytes lie (start, end)."""

    number: int
    wire: int
    value: int = 0
    start: int = 0
    end: int = 0


def fields(file: BinaryIO, start: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message between two offsets. The file may be moved between two of them.

    Raises:
        WireError: bytes that are no message.
    """
    at = start
    while at < end:
        file.seek(at)
        head = file.read(2 * MAX_VARINT)
        key, used = _varint(head, 0)
        number, wire = key >> 3, key & 7
        if not 0 < number <= MAX_NUMBER:  # other readers cut a larger one down to some other field
            raise WireError(f"a field has the number {number}")
        if wire == VARINT:
            value, used = _varint(head, used)
            field, at = Field(number, wire, value), at + used
        elif wire in (FIXED64, FIXED32, BYTES):
            size, used = (8, used) if wire == FIXED64 else (4, used) if wire == FIXED32 else _varint(head, used)
            field = Field(number, wire, 0, at + used, at + used + size)
            at = field.end
        else:
            raise WireError(f"a field has the wire type {wire}")
        if at > end:
            raise WireError("a field goes beyond its message")
        yield field


def text(file: BinaryIO, field: Field) -> str:
    """Read a field that holds a name."""
    if field.wire != BYTES or field.end - field.start > MAX_TEXT:
        raise WireError(f"a name has {field.end - field.start} bytes")
    file.seek(field.start)
    try:
        return file.read(field.end - field.start).decode("utf-8")
    except UnicodeDecodeError as error:
        raise WireError("a name is not UTF-8") from error


def _varint(head: bytes, at: int) -> tuple[int, int]:
    """Read a number of seven bits a byte, and tell where it ends."""
    value = 0
    for k, byte in enumerate(head[at : at + MAX_VARINT]):
        value |= (byte & 0x7F) << (7 * k)
        if byte < 0x80:
            if value >> 64:
                raise WireError("a number has more than 64 bits")
            return value, at + k + 1
    raise WireError("it ends in the middle of a field" if len(head) < at + MAX_VARINT else "a number goes on and on")
