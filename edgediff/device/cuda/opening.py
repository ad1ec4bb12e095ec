"""NVIDIA's driver and cuda-core above it are opened here, or the reason is said why they cannot be."""

from __future__ import annotations

import os
from typing import Any

from ...checks import is_whole
from ...errors import ArgumentError, EngineError, shown
from ..driver import count_gpus, probe

INSTALL = "pip install 'cuda-core>=1.0' 'cuda-bindings>=12.9'"
FORKED = "this process was forked from one that uses CUDA, and cannot use it; start it by spawn"
_forked = False


def open_driver(ordinal: int) -> tuple[Any, Any]:
    """The driver's functions (``cuda.bindings.driver``) and ``cuda.core``, where this device can be opened.

    Raises:
        EngineError: no driver, one that is too old, no device, or cuda-core missing or broken.
        ArgumentError: no device of this number.
    """
    if _forked:
        raise EngineError(FORKED)
    count = count_gpus()
    if not is_whole(ordinal, 0, count - 1):
        raise ArgumentError(f"device is {shown(ordinal)}; this machine has 0 .. {count - 1}")
    runs = probe(int(ordinal)).driver
    try:
        import cuda.bindings
        import cuda.core
        from cuda.bindings import driver
    except ImportError as error:
        raise EngineError(f"cuda-core cannot be imported ({error}); run: {INSTALL}") from error
    version = cuda.bindings.__version__
    if runs[0] < int(version.split(".")[0]):
        raise EngineError(
            f"the NVIDIA driver runs CUDA up to {runs[0]}.{runs[1]}, which is too old for cuda-bindings {version}; "
            f"update the driver, or run: pip install 'cuda-bindings<{runs[0] + 1}'"
        )
    return driver, cuda.core


def _after_fork() -> None:
    """In a forked child the driver answers no more."""
    global _forked
    _forked = _forked or probe.cache_info().currsize > 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
