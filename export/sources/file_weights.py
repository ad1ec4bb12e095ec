"""The tensors of a checkpoint's files are weights that are read one at a time."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from edgediff.errors import BundleError

from ..weight import Array, Weight

# Files of weights that diffusers and transformers read; others may lie beside them.
WEIGHTS = r"(diffusion_pytorch_model|pytorch_model|model)[.-].*(safetensors|bin)(\.index\.json)?$"
HALF = r"\.fp16[.-]"
# NumPy's type of each of safetensors', and torch's where NumPy has none.
TYPES: dict[str, tuple[type[np.generic], torch.dtype | None]] = {
    "F64": (np.float64, None),
    "F32": (np.float32, None),
    "F16": (np.float16, None),
    "BF16": (np.uint16, torch.bfloat16),
    "F8_E4M3": (np.uint8, torch.float8_e4m3fn),
    "F8_E5M2": (np.uint8, torch.float8_e5m2),
}


def half_files_alone(folder: Path) -> bool:
    """Whether a component's folder holds the ``.fp16`` variant of its weights, and no other."""
    found = weight_files(folder)
    return bool(found) and all(re.search(HALF, p.name) for p in found)


def weight_files(folder: Path) -> list[Path]:
    """List a component's files of weights."""
    return [p for p in sorted(folder.iterdir()) if re.match(WEIGHTS, p.name)] if folder.is_dir() else []


def folder_weights(folder: Path) -> dict[str, Weight]:
    """Find the float32 weights of a component's folder, as ``from_pretrained`` chooses among its files.

    Raises:
        BundleError: no file of weights.
    """
    half = half_files_alone(folder)
    names = [p for p in weight_files(folder) if bool(re.search(HALF, p.name)) == half]
    for ending in (".safetensors.index.json", ".safetensors", ".bin.index.json", ".bin"):
        found = [p for p in names if p.name.endswith(ending) and not re.search(r"-\d+-of-\d+", p.name)]
        if not found:
            continue
        files = found[:1]
        if ending.endswith(".json"):
            listed = json.loads(found[0].read_text(encoding="utf-8"))["weight_map"]
            files = [folder / name for name in sorted(set(listed.values()))]
        return {name: weight for file in files for name, weight in file_weights(file).items()}
    raise BundleError(f"{folder} holds no file of weights (model.safetensors or diffusion_pytorch_model.safetensors)")


def file_weights(path: Path) -> dict[str, Weight]:
    """Find the weights of one file; only its header is read. Tensors that are not floats are left out."""
    if path.suffix == ".safetensors":
        return {name: of_file(path, *facts) for name, facts in float_tensors(path).items()}
    tensors: Mapping[str, torch.Tensor] = torch.load(path, "cpu", mmap=True, weights_only=True)
    return {name: of_tensor(t) for name, t in tensors.items() if t.is_floating_point()}


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
