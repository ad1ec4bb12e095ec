"""What a part takes and gives is held against what the bundle says of it, when it opens and whenever it has run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import TENSORS, TEXT_ENCODERS, Bundle, Part, Tensor
from ..errors import SHOWN, BundleError, EdgediffError, EngineError, choices, printable, shown
from .base import Shapes

# ONNX Runtime's names of the types that a tensor may have here, and ours.
TYPES = {"float": "float32", "double": "float64", "float16": "float16", "bfloat16": "bfloat16", "int64": "int64",
         "int32": "int32"}  # fmt: skip
FLOATS = ("float32", "float16", "bfloat16", "float64")
TENSOR = re.compile(r"tensor\((\w+)\)")

Form = tuple[str, tuple[int | None, ...]]  # type and shape of an array; None is any length


def check_session(name: str, file: str, part: Part, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Hold a session's inputs and outputs (each has ``name``, ``type`` and ``shape``, as ONNX Runtime shows them)
    against the manifest: names and their order, types, ranks, and the lengths that both know.

    Raises:
        BundleError: they differ, or a part of ours gives something other than floating-point numbers.
    """
    for kind, described, real in (("input", part.inputs, inputs), ("output", part.outputs, outputs)):
        names, real_names = [t.name for t in described], [t.name for t in real]
        if names != real_names:
            raise BundleError(f"{name}: {file} has {kind}s {shown(real_names)}, the manifest says {shown(names)}")
        for tensor, own in zip(described, real, strict=True):
            if not _agrees(tensor, own):
                raise BundleError(
                    f"{name}: {file} has {kind} {printable(tensor.name)} of type {_described(own)}, "
                    f"the manifest says {shown_form(tensor.dtype, tensor.shape)}"
                )
            if kind == "output" and tensor.dtype not in FLOATS:
                raise BundleError(
                    f"{name}: {file} gives {printable(tensor.name)} as {tensor.dtype}; choose from {choices(FLOATS)}"
                )


def _agrees(tensor: Tensor, own: Any) -> bool:
    match = TENSOR.fullmatch(own.type)
    if match is None or TYPES.get(match[1]) != tensor.dtype:
        return False
    if not own.shape or tensor.shape in ((), ("?",)):  # the file does not tell a rank, or another exporter's did not
        return True
    if len(own.shape) != len(tensor.shape):
        return False
    known = ((a, b) for a, b in zip(own.shape, tensor.shape, strict=True) if isinstance(a, int) and isinstance(b, int))
    return all(a == b for a, b in known)


def _described(own: Any) -> str:
    match = TENSOR.fullmatch(own.type)
    return printable(own.type) if match is None else shown_form(TYPES.get(match[1], match[1]), own.shape)


def shown_form(dtype: str, shape: Sequence[int | str | None]) -> str:
    """Write a type and a shape: ``float32[batch, 4, ?, ?]``."""
    return printable(f"{dtype}[{', '.join('?' if size is None else str(size) for size in shape)}]"[:SHOWN])


def forms(bundle: Bundle, part: str, shapes: Shapes) -> dict[str, Form]:
    """The type and shape that each output of a part must have, for inputs of these shapes.

    Types are the manifest's. Shapes are those that the runtime works with, whatever names a manifest gives to sizes.
    """
    latent = bundle.latent
    if part in TEXT_ENCODERS:
        count, tokens = shapes["input_ids"]
        whole: tuple[int | None, ...] = (count, tokens, None)
    else:
        count, _, height, width = shapes["latent_sample" if part.endswith("decoder") else "sample"]
        if part == "unet":
            whole = (count, latent.channels, height, width)
        elif part == "vae_encoder":
            whole = (count, latent.channels, height // latent.factor, width // latent.factor)
        else:
            whole = (count, 3, height * latent.factor, width * latent.factor)
    return {t.name: (t.dtype, (count, None) if t.name == "text_embeds" else whole) for t in bundle.parts[part].outputs}


def run_part(
    part: str, engine: Callable[..., Any], inputs: Mapping[str, NDArray[Any]], wanted: Mapping[str, Form]
) -> Mapping[str, NDArray[Any]]:
    """Call a part's engine, and hold what it gives against the forms that are wanted.

    Raises:
        EngineError: an output is missing, or of another type or shape; memory, or Python's stack, ended in the engine.
    """
    try:
        out: Mapping[str, NDArray[Any]] = engine(**inputs)
    except (MemoryError, RecursionError) as error:
        if isinstance(error, EdgediffError):
            raise
        what = "memory" if isinstance(error, MemoryError) else "Python's stack"
        said = ", ".join(f"{name} {values.dtype}{list(values.shape)}" for name, values in inputs.items())
        raise EngineError(f"{part}: {what} ran out in its engine, on {said}") from error
    if not isinstance(out, Mapping):
        raise EngineError(f"{part} gave {type(out).__name__}; it must give arrays by name: {choices(wanted)}")
    for name, (dtype, shape) in wanted.items():
        values = out.get(name)
        if type(values) is np.ndarray and values.shape == shape and values.dtype == dtype:
            continue
        if values is None and name not in TENSORS[part][1]:
            continue  # another state, which only some calls read
        if not isinstance(values, np.ndarray) or not _fits(values, dtype, shape):
            given = "nothing" if values is None else type(values).__name__
            given = shown_form(str(values.dtype), values.shape) if isinstance(values, np.ndarray) else given
            raise EngineError(f"{part} gave {given} as {name}; it must be {shown_form(dtype, shape)}")
    return out


def _fits(values: NDArray[Any], dtype: str, shape: tuple[int | None, ...]) -> bool:
    if values.dtype.name != dtype or values.dtype.byteorder not in "=|" or len(values.shape) != len(shape):
        return False
    return all(size in (None, own) for size, own in zip(shape, values.shape, strict=True))
