"""The device loop runs on a device: memory, one stream and captured graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from .array import Block
from .geometry import Geometry


class PreparedUpdate(Protocol):
    """A prepared update is the launches of one loop on a device's stream, checked and laid out."""

    def begin(self) -> None:
        """Enqueue the first state and the model's first input."""

    def step(self) -> None:
        """Enqueue the next row."""


class Kernels(Protocol):
    """The kernels of a device; each call enqueues one on the device's stream.

    Raises:
        ArgumentError: a number, a type or a buffer out of range.
        EngineError: the launch failed.
    """

    def update(self, geometry: Geometry, buffers: Mapping[str, Block], emulated: int = 0) -> PreparedUpdate:
        """Lay out the launches of a loop. ``buffers`` are those of ``Geometry.state``; the caller keeps them.
        ``emulated``, on the host: walk the grid that a GPU of so many multiprocessors would.
        """

    def unscale(self, x: Block, z: Block, dtype: str, count: int, scale: float, shift: float) -> None:
        """``z = x/scale + shift``, from float32 to ``dtype``."""

    def to_uint8(self, decoded: Block, pixels: Block, header: Block, dtype: str, images: int, area: int) -> None:
        """A decoder's output (images, 3, area) in [-1, 1] -> uint8 (images, area, 3), in 0 .. 255."""


class Device(Protocol):
    """A device works in the order of one stream. Only ``download``, ``wait``, ``trim`` and ``close`` let the host wait;
    and ``upload``, where megabytes of earlier ones are still on their way.

    After ``close`` every method but ``free`` and ``close`` raises ``EngineError``.
    """

    ordinal: int  # of the CUDA device; -1 is the host
    stream: int  # the stream's address
    lock: threading.RLock  # held while work is enqueued that belongs together; the methods below take it themselves

    @property
    def kernels(self) -> Kernels:
        """The kernels, found or compiled at first use. Raises ``EngineError`` where there are none."""

    def use(self) -> None:
        """Make this the calling thread's device, for libraries that take the current one."""

    def allocate(self, size: int) -> int:
        """The address of ``size`` fresh bytes, zero, aligned to 256; they live until ``free`` or ``close``."""

    def free(self, address: int) -> None:
        """Give memory back, once what is enqueued has run; and in a capture, at its end."""

    def trim(self) -> None:
        """Give freed memory back to the system, for libraries that allocate by themselves. Waits for the device."""

    def upload(self, address: int, values: NDArray[Any]) -> None:
        """Copy to the device; ``values`` may be changed afterwards."""

    def download(self, address: int, values: NDArray[Any]) -> None:
        """Copy from the device into ``values`` and wait for it."""

    def capture(self, work: Callable[[], None]) -> Any:
        """The graph of what ``work`` enqueues on the stream; nothing runs."""

    def launch(self, graph: Any) -> None:
        """Enqueue a captured graph."""

    def mark(self) -> Any:
        """A point in the stream, for one ``wait``, after which the device may use the mark again."""

    def wait(self, mark: Any) -> None:
        """Wait until the stream has passed ``mark``."""

    def close(self) -> None:
        """Wait for the stream and free the memory."""
