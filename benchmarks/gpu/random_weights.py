"""Random weights drawn by name: whatever torch made them, the same bytes can be drawn again from a list of names."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RECIPE = "weights.json"  # by "component/parameter": shape, mean, width


def draw(name: str, shape: list[int], mean: float, width: float) -> NDArray[np.float16]:
    """Draw a parameter evenly about ``mean``. Every operation is exact or rounded once, so that machines agree."""
    values = np.random.default_rng(zlib.crc32(name.encode())).random(shape, np.float32)
    values -= np.float32(0.5)
    values *= np.float32(width)
    values += np.float32(mean)
    return values.astype(np.float16)


def redraw(source: Path) -> None:
    """Draw the weights of a diffusers folder anew, each with its own deviation, and write the recipe beside them.

    All are fit for fp16, so that bundles of different precision have the same weights.
    """
    from safetensors.numpy import load_file, save_file

    recipe: dict[str, Any] = {}
    for file in sorted(source.glob("*/*.safetensors")):
        tensors = load_file(str(file))
        for name, values in tensors.items():
            if values.dtype not in (np.float32, np.float16):
                continue
            full = f"{file.parent.name}/{name}"
            recipe[full] = {
                "shape": list(values.shape),
                "mean": float(values.flat[0]) if np.ptp(values) == 0 else 0.0,
                "width": float(np.float32(values.std(dtype=np.float64) * 12**0.5)),
            }
            tensors[name] = draw(full, **recipe[full]).astype(values.dtype)
        save_file(tensors, str(file), {"format": "pt"})
    (source / RECIPE).write_text(json.dumps(recipe), encoding="utf-8")
