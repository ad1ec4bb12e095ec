"""NVIDIA's driver says which GPUs are here. It is asked through ctypes: nothing is installed, and nothing can crash.

TensorRT segfaults where there is no driver, so this is asked before it is touched.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import cache

from ..errors import EngineError

LIBRARIES = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1",)
MAJOR, MINOR, INTEGRATED = 75, 76, 18  # CUdevice_attribute


@dataclass(frozen=True)
class Gpu:
    """A ``Gpu`` is what the driver says of one GPU."""

    ordinal: int
    name: str
    capability: tuple[int, int]
    memory: int  # bytes; a Jetson's is the system's
    integrated: bool
    driver: tuple[int, int]  # the newest CUDA that the driver runs


def count_gpus() -> int:
    """How many GPUs the driver has, at least 1. Errors as ``probe``."""
    driver, count = _open(), ctypes.c_int()
    _call(driver, "cuInit", 0)
    _call(driver, "cuDeviceGetCount", ctypes.byref(count))
    if not count.value:
        raise EngineError("the NVIDIA driver has no GPU")
    return count.value


@cache
def probe(ordinal: int = 0) -> Gpu:
    """The GPU of this number. Makes no context.

    Raises:
        EngineError: no driver, no GPU, no GPU of this number, or a driver that cannot start; the message says which.
    """
    count = count_gpus()
    if not 0 <= ordinal < count:
        raise EngineError(f"no CUDA device {ordinal}; the driver has {count}")
    driver = _open()
    version, device = ctypes.c_int(), ctypes.c_int()
    _call(driver, "cuDriverGetVersion", ctypes.byref(version))
    _call(driver, "cuDeviceGet", ctypes.byref(device), ordinal)
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    _call(driver, "cuDeviceGetName", name, len(name), device)
    _call(driver, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)

    def attribute(which: int) -> int:
        value = ctypes.c_int()
        _call(driver, "cuDeviceGetAttribute", ctypes.byref(value), which, device)
        return value.value

    return Gpu(
        ordinal,
        name.value.decode(errors="replace"),
        (attribute(MAJOR), attribute(MINOR)),
        memory.value,
        bool(attribute(INTEGRATED)),
        (version.value // 1000, version.value % 1000 // 10),
    )


def _open() -> ctypes.CDLL:
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise EngineError(f"no NVIDIA driver ({LIBRARIES[0]} is not there, or cannot be loaded)")


def _call(driver: ctypes.CDLL, function: str, *args: object) -> None:
    code = getattr(driver, function)(*args)
    if code:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(code, ctypes.byref(text))
        why = text.value.decode(errors="replace") if text.value else "unknown"
        raise EngineError(f"the NVIDIA driver's {function} gave error {code} ({why})")
