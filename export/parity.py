"""Exported parts against torch: the report that a bundle carries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgediff.engines.onnxruntime import import_onnxruntime
from edgediff.errors import EngineError

from .parts import Recipe, run

# Largest relative error (2-norm) that a part may show. fp32 differs by summation order alone.
CEILING = {"fp32": 1e-4, "fp16-weights": 1e-2}


def compare(part: Recipe, module: torch.nn.Module, path: Path, precision: str) -> dict[str, Any]:
    """Run a part in torch and in ONNX Runtime, at another batch and size than it was traced with.

    Returns max_abs and relative (2-norm of the difference over torch's) of the worst output.

    Raises:
        EngineError: relative above the precision's ceiling, or a value that is not finite.
    """
    ort = import_onnxruntime()
    inputs = part.example(2, 2)
    expected = run(part, module, 2, 2)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = session.run(list(part.outputs), {k: v.numpy() for k, v in inputs.items()})
    worst = {"max_abs": 0.0, "relative": 0.0}
    for name, want, got in zip(part.outputs, expected, found, strict=True):
        reference = want.numpy()
        if not (np.isfinite(reference).all() and np.isfinite(got).all()):
            side = "torch" if not np.isfinite(reference).all() else f"the exported {precision} graph"
            raise EngineError(f"{part.name}: output {name} of {side} is not finite; check the weights")
        difference = np.abs(got - reference)
        scale = float(np.linalg.norm(reference)) or 1.0
        worst["max_abs"] = max(worst["max_abs"], float(difference.max()))
        worst["relative"] = max(worst["relative"], float(np.linalg.norm(difference)) / scale)
    if worst["relative"] > CEILING[precision]:
        raise EngineError(
            f"{part.name}: {precision} differs from torch by {worst['relative']:.2e} (relative), "
            f"above the ceiling {CEILING[precision]:g}"
        )
    return {"precision": precision, **{k: float(f"{v:.3e}") for k, v in worst.items()}}
