"""The tensors of a checkpoint's files are weights that are read one at a time."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import torch

from ..weight import Array, Weight
from .weight_files import find_weights

# NumPy's type of each of safetensors', and torch's where NumPy has none.
TYPES: dict[str, tuple[type[np.generic], torch.dtype | None]] = {
    "F64": (np.float64, None),
    "F32": (np.float32, None),
    "F16": (np.float16, None),
    "BF16": (np.uint16, torch.bfloat16),
    "F8_E4M3": (np.uint8, torch.float8_e4m3fn),
    "F8_E5M2": (np.uint8, torch.float8_e5m2),
}


def folder_weights(folder: Path) -> dict[str, Weight]:
    """Find the float32 weights of a component's folder. Raises ``BundleError`` where there is no file of weights."""
    return {name: weight for path in find_weights(folder).paths for name, weight in file_weights(path).items()}


def file_weights(path: Path) -> dict[str, Weight]:
    """Find the weights of one file; only its header is read. Tensors that are not floats are left out."""
    return {name: of_file(path, *facts) for name, facts in float_tensors(path).items()}


def float_tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Read (type, shape, offset in bytes) of the floats of a safetensors file from its header."""
    with path.open("rb") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        header = json.loads(f.read(length))
    return {
        name: (facts["dtype"], tuple(facts["shape"]), 8 + length + facts["data_offsets"][0])
        for name, facts in header.items()
        if name != "__metadata__" and facts["dtype"] in TYPES
    }


def of_file(path: Path, kind: str, shape: tuple[int, ...], offset: int) -> Weight:
    """Make a weight of a tensor in a safetensors file. The file is mapped for each reading, and let go."""
    dtype, torch_dtype = TYPES[kind]

    def mapped() -> Array:
        if 0 in shape:
            return np.zeros(shape, dtype)
        return np.memmap(path, dtype, "r", offset, shape or (1,)).reshape(shape)

    if torch_dtype is None and dtype is not np.float64:
        return Weight.in_file(shape, mapped)

    def widened() -> Array:
        values = torch.from_numpy(np.array(mapped()))
        out: Array = (values if torch_dtype is None else values.view(torch_dtype)).float().numpy()
        return out

    return Weight(shape, np.dtype(np.float32), widened)


def of_tensor(tensor: torch.Tensor) -> Weight:
    """Make a float32 weight of a tensor of any float type."""
    values = tensor.detach()
    if values.dtype in (torch.float16, torch.float32):
        return Weight.in_file(tuple(values.shape), values.numpy)
    return Weight(tuple(values.shape), np.dtype(np.float32), lambda: values.float().numpy())
