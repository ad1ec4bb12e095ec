"""The device loop runs on an NVIDIA GPU, by cuda-core."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from ..errors import ArgumentError, EdgediffError, EngineError
from .cuda_driver import here, open_devices, open_driver
from .driver import probe
from .staging import StagingRing

if TYPE_CHECKING:
    from .base import Kernels

CLOSED = "the device is closed"
IN_GRAPH = "a captured graph cannot hold it"


class CudaDevice:
    """``CudaDevice`` runs the device loop on an NVIDIA GPU.

    Threads may share it. Its events block: a thread that waits sleeps, where cuda-core's own would spin.

    A context is current in a thread, and other libraries change it. So the methods make this device's the current one
    in a thread that they have not just been called from, and once more where the driver refuses a call. That is
    enough for those that enqueue and wait, where the driver either refuses another's context or does the right thing:
    a stream knows its own. Asking each time would cost as much as the launch itself.

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
        self.driver, core = open_driver(ordinal)
        self.cache_folder = cache_folder
        self.ordinal = int(ordinal)
        self.lock = threading.RLock()
        self._success = self.driver.CUresult.CUDA_SUCCESS
        self._buffers: dict[int, Any] = {}
        self._marks: list[Any] = []  # events that no one waits for
        self._closed = ""  # why nothing can be done any more
        self._refused = ""  # the same, or why nothing can be done in a capture
        self._token = object()  # what ``here`` holds in a thread that has made this device current
        self._capturing = 0  # the thread that captures
        with self._typed(f"opening CUDA device {ordinal}"):
            self._device = core.Device(self.ordinal)
            self._device.set_current()
            self._stream = self._device.create_stream()
            self._events = core.EventOptions(blocking_sync=True)
            self._staging = StagingRing(self.driver, self._device, self._stream)
            self.stream = int(self._stream.handle)
            properties = self._device.properties
            self.multiprocessors = int(properties.multiprocessor_count)
            self.threads_per_multiprocessor = int(properties.max_threads_per_multiprocessor)
            major, minor = self._device.compute_capability
            self.compute_capability = (int(major), int(minor))
            self.name = str(self._device.name)
            self.driver_version = probe(self.ordinal).driver
        open_devices.add(self)

    @cached_property
    def kernels(self) -> Kernels:
        """The kernels, found or compiled at first use. Raises ``EngineError`` where there are none."""
        from .cuda_kernels import CudaKernels

        return CudaKernels(self)

    def use(self) -> None:
        """Make this the calling thread's device, for libraries that take the current one."""
        if self._closed:
            raise EngineError(self._closed)
        with self._typed("turning to the device"):
            self._device.set_current()
            here.current = self._token

    def call(self, function: Any, *args: Any) -> Any:
        """Call a function of ``driver`` with this device's context: its value, a tuple of several, or None.

        Raises ``EngineError`` that names the function and the driver's error. A capture may hold it.
        """
        with self.lock:
            if self._closed:
                raise EngineError(self._closed)
            if here.current is not self._token:
                self.use()
            error, *values = function(*args)
            if error != self._success:
                self.use()
                error, *values = function(*args)
            if error != self._success:
                raise EngineError(f"{function.__name__} gave {error.name}")
        return values[0] if len(values) == 1 else tuple(values) or None

    def allocate(self, size: int) -> int:
        with self._alone(f"allocating {size / 1e6:.1f} MB on CUDA device {self.ordinal}"):
            size = max(size, 256)
            buffer = self._device.allocate(size, stream=self._stream)
            address = int(buffer.handle)
            self.call(self.driver.cuMemsetD8Async, address, 0, size, self._stream.handle)
            self._buffers[address] = buffer
        return address

    def free(self, address: int) -> None:
        if self._closed:
            return  # it has been given back
        with self._alone("freeing memory"):
            if address not in self._buffers:
                raise EngineError(f"freeing memory: nothing is allocated at {address}")
            self._buffers.pop(address).close(self._stream)

    def trim(self) -> None:
        with self._alone("giving memory back to the system"):
            self._sleep_until_done()
            pool = getattr(self._device.memory_resource, "handle", None)  # None: a driver without memory pools
            if pool is not None:
                self.call(self.driver.cuMemPoolTrimTo, pool, 0)

    def upload(self, address: int, values: NDArray[Any]) -> None:
        """Copy to the device; ``values`` may be changed afterwards. It waits only where more than the staging ring
        holds is on its way.
        """
        with self.lock:
            if self._refused:
                self._refuse("copying to the device")
            if here.current is not self._token:
                self.use()
            try:
                self._staging.upload(address, values)
            except Exception:
                self._again("copying to the device", self._staging.upload, address, values)

    def download(self, address: int, values: NDArray[Any]) -> None:
        if not values.flags.c_contiguous:
            raise ArgumentError("values must be contiguous")
        with self._alone("waiting for the device"):
            self._sleep_until_done()  # the copy to pageable memory would spin
            self.call(self.driver.cuMemcpyDtoHAsync, values.ctypes.data, address, values.nbytes, self._stream.handle)
            self._stream.sync()

    def capture(self, work: Callable[[], None]) -> Any:
        with self._alone("capturing a CUDA graph"):
            builder = self._stream.create_graph_builder()
            self._refused, self._capturing = IN_GRAPH, threading.get_ident()
            try:
                builder.begin_building("thread_local")  # other threads may go on allocating
                work()
                graph = builder.end_building().complete()
            except BaseException:
                with suppress(Exception):  # it ends the capture, and complains of what broke it once more
                    builder.close()
                raise
            finally:
                self._refused, self._capturing = self._closed, 0
            builder.close()
            return graph

    def launch(self, graph: Any) -> None:
        with self.lock:
            if self._refused:
                self._refuse("launching a CUDA graph")
            if here.current is not self._token:
                self.use()
            try:
                graph.launch(self._stream)
            except Exception:
                self._again("launching a CUDA graph", graph.launch, self._stream)

    def mark(self) -> Any:
        with self.lock:
            if self._refused:
                self._refuse("marking the stream")
            if here.current is not self._token:
                self.use()
            try:
                event = self._marks.pop() if self._marks else self._device.create_event(self._events)
                return self._stream.record(event)
            except Exception:
                return self._again("marking the stream", self._stream.record, None, self._events)

    def wait(self, mark: Any) -> None:
        if self._refused:
            self._refuse("waiting for the device")
        if here.current is not self._token:
            self.use()
        try:
            mark.sync()
        except Exception:
            self._again("waiting for the device", mark.sync)
        self._marks.append(mark)

    def close(self) -> None:
        """Wait for the stream and free the memory; the object is of no use afterwards.

        Raises ``EngineError`` where the device failed before; it is closed then, too.
        """
        with self.lock:
            if self._closed:
                return
            with self._alone("closing the device"):
                self._closed = self._refused = CLOSED
                self.__dict__.pop("kernels", None)
                self._marks.clear()
                buffers = [partial(buffer.close, self._stream) for buffer in self._buffers.values()]
                self._buffers.clear()
                first: Exception | None = None
                for close in (self._stream.sync, *buffers, self._staging.close, self._stream.close):
                    try:
                        close()
                    except Exception as error:
                        first = first or error
                self.stream = 0
                if first is not None:
                    raise first

    def forked(self, why: str) -> None:
        """Leave everything as it is in a forked process, where the driver cannot be asked; ``why`` is the reason."""
        self.lock = threading.RLock()  # the parent's threads are not here to give it back
        self._closed = self._refused = why
        self.stream = 0

    def _sleep_until_done(self) -> None:
        self._stream.record(None, self._events).sync()

    def _refuse(self, doing: str) -> None:
        if self._closed:
            raise EngineError(self._closed)
        if self._capturing == threading.get_ident():
            raise EngineError(f"{doing}: {self._refused}")

    def _again(self, doing: str, call: Callable[..., Any], *args: Any) -> Any:
        """Do once more what failed, as it may be for want of this device's context."""
        with self._typed(doing):
            self.use()
            return call(*args)

    @contextmanager
    def _alone(self, doing: str) -> Iterator[None]:
        """Nothing else is enqueued, this device's context is the current one, and errors say what was being done."""
        with self.lock, self._typed(doing):
            if self._refused:
                self._refuse(doing)
            self.use()
            yield

    @staticmethod
    @contextmanager
    def _typed(doing: str) -> Iterator[None]:
        """What cuda-core raises becomes ``EngineError``."""
        try:
            yield
        except EdgediffError:
            raise
        except Exception as error:
            raise EngineError(f"{doing}: {error}") from error


def why_no_device(ordinal: int = 0) -> str:
    """Why this CUDA device cannot be opened, or has no kernels; or an empty string. Opens nothing."""
    from .kernel_code import why_no_code

    try:
        open_driver(ordinal)
    except EdgediffError as error:
        return str(error)
    return why_no_code(ordinal)
