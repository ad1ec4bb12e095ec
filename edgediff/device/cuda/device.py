"""The device loop runs on an NVIDIA GPU, by cuda-core."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ...errors import ArgumentError, EdgediffError, EngineError
from ..driver import probe
from .context import CLOSED, CudaContext, Exclusive, here
from .graph import capture_graph
from .opening import open_driver
from .staging import StagingRing

if TYPE_CHECKING:
    from ..base import Kernels

IN_GRAPH = "a captured graph cannot hold it"


class CudaDevice(CudaContext):
    """``CudaDevice`` runs the device loop on an NVIDIA GPU.

    Threads may share it. Its events block: a thread that waits sleeps, where cuda-core's own would spin. Uploads go
    through pinned memory, and wait only where more than the staging ring holds is on its way.

    Args:
        ordinal: which one, from 0.
        cache_folder: where compiled kernels are kept; edgediff's own when None.

    Attributes:
        name, compute_capability, multiprocessors, threads_per_multiprocessor: of the GPU.
        driver_version: the newest CUDA that the driver runs.
        driver: cuda-bindings' module of the driver's functions, for ``call``.

    Raises:
        EngineError: no driver, one that is too old, no device, or cuda-core missing or broken. Methods raise it where
            the driver fails, after ``close``, in a forked process, and in a capture for what a graph cannot hold.
        ArgumentError: no device of this number.
    """

    def __init__(self, ordinal: int = 0, cache_folder: Path | None = None) -> None:
        super().__init__(ordinal)
        self.cache_folder = cache_folder
        self._buffers: dict[int, Any] = {}
        self._marks: list[Any] = []  # events that nobody waits for
        self._freed: list[int] = []  # addresses, in a capture
        self._awaited: list[NDArray[Any]] = []  # where copies may still write, should the wait for them have failed
        with Exclusive(self, f"opening CUDA device {ordinal}"):
            properties, (major, minor) = self._device.properties, self._device.compute_capability
            self.name, self.compute_capability = str(self._device.name), (int(major), int(minor))
            self.multiprocessors = int(properties.multiprocessor_count)
            self.threads_per_multiprocessor = int(properties.max_threads_per_multiprocessor)
            self.driver_version = probe(self.ordinal).driver
            self._stream = self._device.create_stream()
            self._blocking = self._core.EventOptions(blocking_sync=True)
            self._done = self._device.create_event(self._blocking)
            self._staging = StagingRing(self.driver, self._device, self._stream, self._blocking)
            self.stream = int(self._stream.handle)

    @cached_property
    def kernels(self) -> Kernels:
        """The kernels, found or compiled at first use. Raises ``EngineError`` where there are none."""
        self.refuse("loading the kernels")
        from .kernels import CudaKernels

        return CudaKernels(self)

    def allocate(self, size: int) -> int:
        with Exclusive(self, f"allocating {size / 1e6:.1f} MB on CUDA device {self.ordinal}"):
            size = max(size, 256)
            buffer = self._device.allocate(size, stream=self._stream)
            address = int(buffer.handle)
            self.call(self.driver.cuMemsetD8Async, address, 0, size, self._stream.handle)
            self._buffers[address] = buffer
        return address

    def free(self, address: int) -> None:
        if self._closed:
            return  # it has been given back
        if self._capturing == threading.get_ident():  # the collector may let a loop go anywhere
            self._freed.append(address)
            return
        with Exclusive(self, "freeing memory"):
            if address not in self._buffers:
                raise EngineError(f"freeing memory: nothing is allocated at {address}")
            self._buffers.pop(address).close(self._stream)

    def trim(self) -> None:
        with Exclusive(self, "giving memory back to the system"):
            self._sleep_until_done()
            pool = getattr(self._device.memory_resource, "handle", None)  # None: a driver without memory pools
            if pool is not None:
                self.call(self.driver.cuMemPoolTrimTo, pool, 0)

    def upload(self, address: int, values: NDArray[Any]) -> None:
        with self.lock:
            if self._refused:
                self.refuse("copying to the device")
            if here.current is not self._token:
                self.use()
            try:
                self._staging.upload(address, values)
            except Exception:
                self.again("copying to the device", self._staging.upload, address, values)

    def download(self, address: int, values: NDArray[Any]) -> None:
        if not values.flags.c_contiguous:
            raise ArgumentError("values must be contiguous")
        with Exclusive(self, "waiting for the device"):
            self._sleep_until_done()  # a copy to pageable memory would spin
            self._awaited.append(values)
            self.call(self.driver.cuMemcpyDtoHAsync, values.ctypes.data, address, values.nbytes, self._stream.handle)
            self._stream.sync()
            self._awaited.clear()

    def capture(self, work: Callable[[], None]) -> Any:
        with Exclusive(self, "capturing a CUDA graph"):
            self._refused, self._capturing = IN_GRAPH, threading.get_ident()
            try:
                return capture_graph(self._stream, work)
            finally:
                self._refused, self._capturing = self._closed, 0
                while self._freed:
                    self.free(self._freed.pop())

    def launch(self, graph: Any) -> None:
        with self.lock:
            if self._refused:
                self.refuse("launching a CUDA graph")
            if here.current is not self._token:
                self.use()
            try:
                graph.launch(self._stream)
            except Exception:
                self.again("launching a CUDA graph", graph.launch, self._stream)

    def mark(self) -> Any:
        with self.lock:
            if self._refused:
                self.refuse("marking the stream")
            if here.current is not self._token:
                self.use()
            try:
                return self._stream.record(self._marks.pop() if self._marks else None, self._blocking)
            except Exception:
                return self.again("marking the stream", self._stream.record, None, self._blocking)

    def wait(self, mark: Any) -> None:
        if self._refused:
            self.refuse("waiting for the device")
        if here.current is not self._token:
            self.use()
        try:
            mark.sync()
        except Exception:
            self.again("waiting for the device", mark.sync)
        self._marks.append(mark)

    def close(self) -> None:
        """Wait for the stream and free the memory. Raises ``EngineError`` where the device failed; it is closed then,
        too.
        """
        with self.lock:
            if self._closed:
                return
            self.refuse("closing the device")
            self._closed = self._refused = CLOSED
            self.__dict__.pop("kernels", None)
            buffers = [partial(buffer.close, self._stream) for buffer in self._buffers.values()]
            self._buffers.clear()
            self._marks.clear()
            self.stream = 0
            failures = []
            for end in (self._device.set_current, self._stream.sync, *buffers, self._staging.close, self._stream.close):
                try:
                    end()
                except Exception as error:
                    failures.append(error)
            if failures:
                raise EngineError(f"closing the device: {failures[0]}") from failures[0]

    def forked(self) -> None:
        super().forked()
        self.stream = 0

    def _sleep_until_done(self) -> None:
        self._stream.record(self._done).sync()


def why_no_device(ordinal: int = 0) -> str:
    """Why this CUDA device cannot be opened, or has no kernels; or an empty string. Opens nothing."""
    try:
        open_driver(ordinal)
    except EdgediffError as error:
        return str(error)
    from .machine_code import why_no_code

    return why_no_code(ordinal)
