"""A LoRA file is opened as a stranger's: regular, with a header that is not endless, every error typed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open

from edgediff.errors import BundleError, EdgediffError
from edgediff.files import open_regular
from edgediff.looks import not_safetensors
from edgediff.rust import panics_caught

MAX_HEADER = 16 << 20  # bytes; files of 3,000 tensors have 0.5 MB


@contextmanager
def open_lora(path: Path) -> Iterator[Any]:
    """Open a safetensors file as ``safe_open`` does, for torch.

    Raises:
        BundleError: no regular file, no safetensors file, a header of more than ``MAX_HEADER`` bytes; a tensor that is
            read inside and cannot be.
    """
    try:
        with open_regular(path) as raw:
            length, size = int.from_bytes(raw.read(8), "little"), os.fstat(raw.fileno()).st_size
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
    if MAX_HEADER < length < size:
        raise BundleError(f"{path} has a header of {length} bytes; a LoRA's has at most {MAX_HEADER}")
    try:
        with panics_caught(), safe_open(path, framework="pt") as file:
            yield file
    except (EdgediffError, MemoryError):
        raise
    except Exception as error:  # the library raises its own, and those of torch
        raise BundleError(not_safetensors(path, error)) from error
