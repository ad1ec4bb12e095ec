"""The parts of a foreign folder as a manifest lists them: our names, our types, the sizes that are fixed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import BundleError
from ..onnx_file.header import GraphHeader, Port
from .adaptation import Adaptation
from .signatures import MODEL

ENGINE, WEIGHTS = "onnx-foreign", "onnx-data"  # FOREIGN and WEIGHTS of ..manifest, which imports this folder
# Names of sizes that may change, as the exporter gives them; None is a width, which is fixed.
CELLS, PIXELS = ("batch", None, "latent_height", "latent_width"), ("batch", None, "height", "width")
AXES: dict[str, dict[str, tuple[str | None, ...]]] = {
    "text": {"input_ids": ("batch", "length"), "*": ("batch", "length", None), "text_embeds": ("batch", None)},
    "unet": {
        "sample": CELLS,
        "out_sample": CELLS,
        "timestep": ("batch",),
        "encoder_hidden_states": ("batch", "tokens", None),
        "*": ("batch", None),
    },
    "vae_decoder": {"latent_sample": CELLS, "sample": PIXELS},
    "vae_encoder": {"sample": PIXELS, "*": CELLS},
}
FIXED = ("sample", "latent_sample", "encoder_hidden_states", "input_ids")  # may be of one size alone


def part_entry(root: Path, adaptation: Adaptation, kind: str, known: Mapping[str, int]) -> dict[str, Any]:
    """Describe a part.

    Args:
        kind: a key of ``AXES``.
        known: the last or channel size of tensors, by our name, where configs or other graphs tell it.
    """
    inputs = [_tensor(name, port, kind, known) for name, port in adaptation.inputs.items()]
    outputs = [_tensor(name, given.port, kind, known) for name, given in adaptation.outputs.items()]
    folder, header = adaptation.folder, adaptation.header
    files = [file_entry(root, root / folder / MODEL, ENGINE, precision(header))]
    files += [file_entry(root, root / folder / name, WEIGHTS, precision(header)) for name in sorted(header.external)]
    return {"files": files, "inputs": inputs, "outputs": outputs}


def _tensor(name: str, port: Port, kind: str, known: Mapping[str, int]) -> dict[str, Any]:
    axes = AXES[kind].get(name, AXES[kind].get("*", ()))
    declared = port.shape if len(port.shape) == len(axes) else ("?",) * len(axes)
    shape: list[int | str] = []
    for axis, size in zip(axes, declared, strict=True):
        if axis is None:
            shape.append(known.get(name, size if isinstance(size, int) else f"{name}_width"))
        elif axis != "batch" and isinstance(size, int) and name in FIXED:
            shape.append(size)  # calls are cut to the batch that the graph takes, and not to sizes
        else:
            shape.append(axis)
    return {"name": name, "dtype": "int64" if name == "input_ids" else "float32", "shape": shape}


def file_entry(root: Path, path: Path, engine: str, precision: str) -> dict[str, Any]:
    """Describe a file; nobody has said what it must hash to."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror or error}") from error
    name = path.relative_to(root).as_posix()
    return {"engine": engine, "precision": precision, "path": name, "size": size, "sha256": ""}


def precision(header: GraphHeader) -> str:
    """Name what most of a graph's weights are stored in."""
    names = {"float16": "fp16", "float32": "fp32", "int8": "int8", "uint8": "int8", "bfloat16": "bf16"}
    counted = {names[kind]: count for kind, count in header.weights.items() if kind in names}
    return max(counted, key=lambda name: counted[name]) if counted else "fp32"
