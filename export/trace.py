"""torch module -> ONNX graph, by tracing."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch

OPSET = 18


def trace(
    module: torch.nn.Module,
    example: dict[str, torch.Tensor],
    outputs: Sequence[str],
    axes: dict[str, dict[int, str]],
    scratch: Path,
) -> onnx.ModelProto:
    """The module as a graph with named inputs (``example``'s keys), outputs and dynamic axes.

    ``scratch`` is a folder with room for the weights; nothing stays in it.
    """
    with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory(dir=scratch) as folder:
        # Tracing warns about shape checks that the example satisfies; the parity check runs at another batch and size.
        warnings.simplefilter("ignore")
        path = Path(folder) / "traced.onnx"
        torch.onnx.export(
            module,
            kwargs=example,
            f=str(path),
            input_names=list(example),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
        return onnx.load(str(path))
