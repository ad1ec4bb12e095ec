"""Messages are JSON behind their length, on a socket; arrays lie in an arena, memory that both processes see.

Neither side ever unpickles. The parent does not trust its child: a message has a longest length, an array must lie
inside the arena, and is copied before it is used, since the child could change it meanwhile. The arena's size is
sealed: a child that cut it short would end its parent by SIGBUS.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import platform
import re
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEADER = struct.Struct("!Q")
ALIGNED = 64  # bytes
SMALLEST = 1 << 20
LONGEST = 1 << 20  # bytes of a child's message
MOST_DIMENSIONS = 16
TEXT = 20_000  # characters of an error that are passed on
MEMORY = "memory"  # the kind of an error that comes of the limit
# How ONNX Runtime, C++, Rust and Python say that there is no memory.
NO_MEMORY = re.compile(
    "bad_alloc|bad allocation|Failed to allocate memory|Cannot allocate memory|MemoryError|memory allocation of"
)
MEMFD_CREATE = {"x86_64": 319, "aarch64": 279}
CLOSE_ON_EXEC, ALLOW_SEALING = 1, 2  # of memfd_create
ADD_SEALS, SEAL_SEAL, SEAL_SHRINK, SEAL_GROW = 1033, 1, 2, 4  # of fcntl; linux/fcntl.h
DTYPES = frozenset(
    ["bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float16", "float32",
     "float64"]
)  # fmt: skip

Arrays = Mapping[str, NDArray[Any]]
Message = dict[str, Any]


class ChannelError(Exception):
    """The other side is gone, or said something that it must not."""


class Gone(ChannelError):
    """The other side has closed its end."""


class ChannelTimeout(Exception):
    """The other side did not answer in time."""


def send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    """Send a message. Raises ``ChannelError`` where nobody reads it."""
    data = json.dumps(message).encode()
    try:
        connection.sendall(HEADER.pack(len(data)) + data)
    except TimeoutError as error:
        raise ChannelTimeout from error
    except OSError as error:
        raise Gone(str(error)) from error


def receive(connection: socket.socket, longest: int | None = LONGEST, until: float | None = None) -> Message:
    """Wait for a message of at most ``longest`` bytes, until ``time.monotonic()`` is ``until``.

    Raises:
        ChannelError: the other side is gone, or sent something else.
        ChannelTimeout: it took too long.
    """
    (length,) = HEADER.unpack(_exactly(connection, HEADER.size, until))
    if longest is not None and length > longest:
        raise ChannelError(f"a message of {length} bytes")
    data = _exactly(connection, length, until)
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ChannelError("a message that is no JSON") from error
    if not isinstance(message, dict):
        raise ChannelError("a message that is no object")
    return message


def _exactly(connection: socket.socket, length: int, until: float | None) -> bytes:
    pieces = []
    while length:
        try:
            if until is not None:  # a bound child may not set one
                connection.settimeout(max(1e-3, until - time.monotonic()))
            piece = connection.recv(min(length, 1 << 20))
        except TimeoutError as error:
            raise ChannelTimeout from error
        except OSError as error:
            raise Gone(str(error)) from error
        if not piece:
            raise Gone("nobody is there")
        if until is not None and time.monotonic() > until:
            raise ChannelTimeout  # one byte now and then is no answer
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


class Arena:
    """An arena is memory that parent and child see. The parent makes it; the child gets its descriptor.

    Args:
        size: bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = -(-max(size, SMALLEST) // SMALLEST) * SMALLEST
        import fcntl  # Unix alone has it

        self.descriptor = _shared_memory()
        try:
            os.ftruncate(self.descriptor, self.size)
            fcntl.fcntl(self.descriptor, ADD_SEALS, SEAL_SEAL | SEAL_SHRINK | SEAL_GROW)
            self.memory = mmap.mmap(self.descriptor, self.size)
        except BaseException:
            os.close(self.descriptor)
            raise

    def hand_over(self, connection: socket.socket) -> None:
        """Send the descriptor, and close it here."""
        try:
            send(connection, {"op": "arena", "size": self.size})
            socket.send_fds(connection, [b"\0"], [self.descriptor])
        except TimeoutError as error:
            raise ChannelTimeout from error
        except OSError as error:
            raise Gone(str(error)) from error
        finally:
            os.close(self.descriptor)


def _shared_memory() -> int:
    """Make memory that can be sealed. Python's own call is missing where Python was built with an old C library, as
    uv's and conda's were; the kernel's is there.
    """
    number = MEMFD_CREATE.get(platform.machine())
    if hasattr(os, "memfd_create") or number is None:
        return os.memfd_create("edgediff", CLOSE_ON_EXEC | ALLOW_SEALING)
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = int(libc.syscall(ctypes.c_long(number), b"edgediff", ctypes.c_uint(CLOSE_ON_EXEC | ALLOW_SEALING)))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return descriptor


def take_over(connection: socket.socket, size: int) -> mmap.mmap:
    """Map the arena whose descriptor comes next."""
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
    try:
        return mmap.mmap(descriptors[0], size)
    finally:
        os.close(descriptors[0])


def room(arrays: Arrays) -> int:
    """Return how many bytes of an arena arrays take."""
    return sum(-(-array.nbytes // ALIGNED) * ALIGNED for array in arrays.values())


def write(memory: mmap.mmap, arrays: Arrays) -> list[Message]:
    """Write arrays into an arena with ``room`` for them; returns where they are."""
    places, at = [], 0
    for name, array in arrays.items():
        dtype = array.dtype.newbyteorder("=")
        np.ndarray(array.shape, dtype, memory, at)[...] = array
        places.append({"name": name, "dtype": dtype.name, "shape": list(array.shape), "at": at})
        at += -(-array.nbytes // ALIGNED) * ALIGNED
    return places


def view(memory: mmap.mmap, places: Sequence[Message]) -> dict[str, NDArray[Any]]:
    """Return the arrays that lie in an arena, where somebody trusted says."""
    return {p["name"]: np.ndarray(tuple(p["shape"]), np.dtype(p["dtype"]), memory, p["at"]) for p in places}


def copies(memory: mmap.mmap, size: int, places: Any) -> dict[str, NDArray[Any]]:
    """Return copies of the arrays that lie in an arena of ``size`` bytes, where somebody says who is not trusted.

    Raises:
        ChannelError: a place that is none, or lies outside.
    """
    if not isinstance(places, list) or len(places) > 1000:
        raise ChannelError("no list of arrays")
    out: dict[str, NDArray[Any]] = {}
    total = 0
    for place in places:
        name, dtype, shape, at = _place(place)
        count = 1
        for side in shape:
            count *= side
        total += (length := count * dtype.itemsize)
        if at + length > size or total > size or name in out:
            raise ChannelError("an array outside the shared memory")
        try:
            out[name] = np.ndarray(shape, dtype, memory, at).copy()
        except ValueError as error:  # no entries, and sides whose product is none that NumPy counts
            raise ChannelError("an array of no known form") from error
    return out


def _place(place: Any) -> tuple[str, np.dtype[Any], tuple[int, ...], int]:
    if not isinstance(place, dict) or set(place) != {"name", "dtype", "shape", "at"}:
        raise ChannelError("an array without a place")
    name, dtype, shape, at = place["name"], place["dtype"], place["shape"], place["at"]
    whole = isinstance(shape, list) and len(shape) <= MOST_DIMENSIONS and all(map(_is_length, [*shape, at]))
    if not isinstance(name, str) or not isinstance(dtype, str) or dtype not in DTYPES or not whole:
        raise ChannelError("an array of no known form")
    return name, np.dtype(dtype), tuple(shape), at


def _is_length(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48
