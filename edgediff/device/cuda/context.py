"""A GPU's context: calls that need it, from whichever thread, and the reasons why there are none any more."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from ...errors import EdgediffError, EngineError
from .opening import FORKED, open_driver

CLOSED = "the device is closed"


class _Thread(threading.local):
    current: object = None  # the token of the context that this thread has been given last


here = _Thread()


class CudaContext:
    """A CUDA context is the primary one of a GPU, which other libraries share.

    A context is current in a thread, and other libraries change it. To ask or to set it costs as much as a launch. So
    calls of the loop set it in a thread that was given another one last, or none; and where the driver refuses the
    call, which is then made once more. With another's context current, the driver refuses a launch; copies, events and
    waits go by the stream and the event, which know their own. What is not of the loop sets it always.

    Args:
        ordinal: of the device, from 0.

    Raises:
        EngineError, ArgumentError: as ``open_driver``.
    """

    def __init__(self, ordinal: int) -> None:
        self.driver, self._core = open_driver(ordinal)
        self.ordinal = int(ordinal)
        self.lock = threading.RLock()
        self._success = self.driver.CUresult.CUDA_SUCCESS
        self._closed = ""  # why nothing can be done any more
        self._refused = ""  # the same, or why little can be done in a capture
        self._capturing = 0  # the thread that captures
        self._token = object()  # ``here.current`` in a thread that was given this context last
        try:
            self._device = self._core.Device(self.ordinal)
            self._device.set_current()
        except Exception as error:  # cuda-core's own kinds
            raise EngineError(f"opening CUDA device {ordinal}: {error}") from error
        _contexts.add(self)

    def use(self) -> None:
        """Make this the calling thread's device, for libraries that take the current one."""
        if self._closed:
            raise EngineError(self._closed)
        try:
            self._device.set_current()
        except Exception as error:
            raise EngineError(f"turning to CUDA device {self.ordinal}: {error}") from error
        here.current = self._token

    def call(self, function: Any, *args: Any) -> Any:
        """Call a function of ``driver`` in this context: its value, a tuple of several, or None. A capture may hold it.

        Raises ``EngineError``, which names the function and the driver's error.
        """
        with self.lock:
            if self._closed:
                raise EngineError(self._closed)
            if here.current is not self._token:
                self.use()
            error, *values = function(*args)
            if error is not self._success:
                self.use()
                error, *values = function(*args)
            if error is not self._success:
                raise EngineError(f"{function.__name__} gave {error.name}")
        return values[0] if len(values) == 1 else tuple(values) or None

    def again(self, doing: str, call: Callable[..., Any], *args: Any) -> Any:
        """Do once more what failed, as it may have been for want of this context."""
        self.use()
        try:
            return call(*args)
        except Exception as error:
            raise EngineError(f"{doing}: {error}") from error

    def refuse(self, doing: str) -> None:
        """Raise ``EngineError`` where this cannot be done: the device is closed, or this thread captures."""
        if self._closed:
            raise EngineError(self._closed)
        if self._capturing == threading.get_ident():
            raise EngineError(f"{doing}: {self._refused}")

    def forked(self) -> None:
        """Be refused from now on, in a forked process, where the driver cannot be asked."""
        self.lock = threading.RLock()  # the parent's threads are not here to give it back
        self._closed = self._refused = FORKED


class Exclusive:
    """Nothing else is enqueued meanwhile, and the context is the current one. What cuda-core raises becomes
    ``EngineError``, which says what was being done.

    Raises:
        EngineError: the device is closed, or this thread captures.
    """

    def __init__(self, context: CudaContext, doing: str) -> None:
        self._context, self._lock, self._doing = context, context.lock, doing

    def __enter__(self) -> None:
        self._lock.acquire()
        try:
            self._context.refuse(self._doing)
            self._context.use()
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._lock.release()
        if isinstance(error, Exception) and not isinstance(error, EdgediffError):
            raise EngineError(f"{self._doing}: {error}") from error


_contexts: WeakSet[CudaContext] = WeakSet()


def _after_fork() -> None:
    for context in _contexts:
        context.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
