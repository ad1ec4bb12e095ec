"""This module tells whether TensorRT can run here. It asks in an order in which nothing can crash."""

from __future__ import annotations

import importlib
import importlib.util
import re
from functools import cache
from typing import Any

from ...device.driver import probe
from ...errors import EngineError
from .engine_file import Platform

MODULES = ("tensorrt", "tensorrt_lean")  # the second runs engine files and cannot build them
BUILDERS = ("tensorrt",)
OLDEST = (10, 3)
INSTALL = "TensorRT is not installed; run: pip install tensorrt (on a Jetson it comes with JetPack)"


def this_platform(ordinal: int, modules: tuple[str, ...] = MODULES) -> Platform:
    """Return the platform that runs engine files on this GPU.

    Raises:
        EngineError: no driver, no GPU of this number, no TensorRT, or one that is too old or cannot be loaded.
    """
    gpu = probe(ordinal)  # first: without a driver TensorRT segfaults
    return Platform(gpu.name, gpu.capability, version(modules))


def building_platform(ordinal: int) -> Platform:
    """Return the platform of this GPU and a TensorRT that can build. Raises as ``this_platform``."""
    return this_platform(ordinal, BUILDERS)


def version(modules: tuple[str, ...] = MODULES) -> tuple[int, ...]:
    """Return the version of the TensorRT that is installed; ``EngineError`` where there is none to be used."""
    text = str(module(modules).__version__)
    numbers = numbers_of(text)
    if numbers < OLDEST:
        raise EngineError(f"TensorRT {text} is too old; edgediff needs {'.'.join(map(str, OLDEST))} or newer")
    return numbers


def numbers_of(version: str) -> tuple[int, ...]:
    """Read ``10.13.3.9`` as (10, 13, 3, 9)."""
    return tuple(int(v) for v in re.findall(r"[0-9]+", version)[:4])


def installed(modules: tuple[str, ...] = MODULES) -> bool:
    """Tell whether one of these modules is there, and import none."""
    return any(importlib.util.find_spec(name) is not None for name in modules)


@cache
def module(modules: tuple[str, ...] = MODULES) -> Any:
    """Return the first of these modules that is installed."""
    for name in modules:
        if importlib.util.find_spec(name) is None:
            continue
        try:
            return importlib.import_module(name)
        except Exception as error:  # its own loader raises RuntimeError, OSError, KeyError, ...
            raise EngineError(f"{name} is installed and cannot be loaded: {type(error).__name__}: {error}") from error
    raise EngineError(INSTALL)


def why_no_tensorrt(ordinal: int = 0) -> str:
    """Tell why engine files cannot run here, or an empty string."""
    try:
        this_platform(ordinal)
    except EngineError as error:
        return str(error)
    return ""
