"""The parent believes nothing that its child says."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any

import numpy as np
import pytest

from edgediff.engines.isolation.channel import (
    DTYPES,
    HEADER,
    LONGEST,
    SMALLEST,
    Arena,
    ChannelError,
    ChannelTimeout,
    copies,
    receive,
    room,
    send,
    take_over,
    write,
)

GOOD = {"name": "x", "dtype": "float32", "shape": [2, 3], "at": 64}
BAD: dict[str, Any] = {
    "no list": 5,
    "no object": [5],
    "a key too many": [{**GOOD, "more": 1}],
    "no place": [{"name": "x"}],
    "a name of another type": [{**GOOD, "name": 5}],
    "objects": [{**GOOD, "dtype": "object"}],
    "a type that is no text": [{**GOOD, "dtype": ["float32"]}],
    "a type with fields": [{**GOOD, "dtype": "i4,i4"}],
    "no shape": [{**GOOD, "shape": 6}],
    "a side below 0": [{**GOOD, "shape": [-1, 3]}],
    "a side that is True": [{**GOOD, "shape": [True, 3]}],
    "a side that is a fraction": [{**GOOD, "shape": [2.0, 3]}],
    "an enormous side": [{**GOOD, "shape": [1 << 70]}],
    "sides that overflow": [{**GOOD, "shape": [1 << 33, 1 << 33]}],
    "sides that overflow beside a 0": [{**GOOD, "shape": [1 << 47, 1 << 47, 0]}],
    "too many sides": [{**GOOD, "shape": [1] * 33}],
    "a place below 0": [{**GOOD, "at": -64}],
    "a place beyond": [{**GOOD, "at": SMALLEST}],
    "across the end": [{**GOOD, "at": SMALLEST - 20}],
    "a name twice": [GOOD, GOOD],
    "more than there is, by overlapping": [{**GOOD, "name": str(k), "shape": [SMALLEST // 8]} for k in range(3)],
    "a thousand": [{**GOOD, "name": str(k)} for k in range(1001)],
}


@pytest.mark.parametrize("places", BAD.values(), ids=list(BAD))
def test_places_that_are_none(places: Any) -> None:
    arena = Arena(1)
    os.close(arena.descriptor)
    with pytest.raises(ChannelError):
        copies(arena.memory, arena.size, places)


def test_arrays_come_back_equal() -> None:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        kind: rng.integers(0, 2, (3, 5, 2)).astype(kind) for kind in sorted(DTYPES)
    }  # each in its own type
    arrays |= {"scalar": np.float32(3), "empty": np.zeros((0, 4), np.int64), "turned": rng.random((4, 6)).T}
    arrays |= {"every second": rng.random(9)[::2], "big-endian": np.arange(3, dtype=">i4")}
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    arena = Arena(room(arrays))
    os.close(arena.descriptor)
    found = copies(arena.memory, arena.size, json.loads(json.dumps(write(arena.memory, arrays))))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[name], array)
        assert found[name].flags.owndata


def test_an_arena_keeps_its_size() -> None:
    """One that a child cut short would end its parent by SIGBUS."""
    arena = Arena(100)
    for size in (0, 2 * SMALLEST):
        with pytest.raises(PermissionError):
            os.ftruncate(arena.descriptor, size)
    os.close(arena.descriptor)


def test_an_arena_is_handed_over() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        arena = Arena(100)
        arena.hand_over(ours)
        memory = take_over(theirs, receive(theirs)["size"])
        memory[:5] = b"hello"
        assert arena.memory[:5] == b"hello"
        with pytest.raises(OSError, match="descriptor"):
            os.fstat(arena.descriptor)


@pytest.mark.parametrize(
    "data",
    [b"", b"1234", HEADER.pack(LONGEST + 1), HEADER.pack(2**64 - 1), HEADER.pack(5) + b"12", HEADER.pack(2) + b"[]",
     HEADER.pack(2) + b"\xff\xff", HEADER.pack(100_000) + b"[" * 100_000, HEADER.pack(5000) + b"1" * 5000],
    ids=["gone", "half a header", "long", "longer", "half", "list", "no text", "deep", "number"],
)  # fmt: skip
def test_messages_that_are_none(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        theirs.sendall(data)
        theirs.close()
        with pytest.raises(ChannelError):
            receive(ours)


def test_a_message_byte_by_byte_is_late() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        began = time.monotonic()
        theirs.sendall(HEADER.pack(3) + b"{}")
        with pytest.raises(ChannelTimeout):
            receive(ours, until=began + 0.2)
        assert time.monotonic() - began < 2


def test_nobody_reads() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(ChannelError):
        send(ours, {"x": "y" * 10**6})
