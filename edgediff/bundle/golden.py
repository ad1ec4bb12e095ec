"""Golden tensors: what torch gave for fixed inputs and calls, stored in a bundle for a proof without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checks import is_number, is_whole
from ..errors import BundleError, EngineError, choices, printable, shown
from ..files import read_regular
from ..rust import panics_caught
from .bounds import MAX_CALLS, MAX_GOLDEN, MAX_GOLDEN_VALUES, MAX_NAME
from .manifest import Bundle, Golden, Part

Tensors = Mapping[str, NDArray[Any]]
Case = dict[str, dict[str, NDArray[Any]]]

ARRAYS = ("image", "mask_image", "latents")  # arguments of a picture's call that lie among the tensors
MAX_SIDE, MAX_STEPS = 2_048, 100  # of a golden picture; exports draw some hundred pixels in 8 steps
# Arguments that an exporter writes. No path is among them: a bundle opens nothing outside itself.
ARGUMENTS = {
    **dict.fromkeys(("prompt", "negative_prompt", "sampler", "spacing"), lambda v: isinstance(v, str)),
    **dict.fromkeys(("width", "height"), lambda v: is_whole(v, 1, MAX_SIDE)),
    "num_inference_steps": lambda v: is_whole(v, 1, MAX_STEPS),
    "seed": lambda v: is_whole(v, 0, 2**64 - 1),
    "guidance_scale": lambda v: is_number(v, -1_000, 1_000),
}


@dataclass(frozen=True)
class GoldenPicture:
    """A call that was drawn at export: its arguments, arrays among them, and the picture, uint8 (H, W, 3)."""

    arguments: Mapping[str, Any]
    picture: NDArray[np.uint8]


def read_golden(bundle: Bundle, golden: Golden) -> dict[str, NDArray[Any]]:
    """Read the golden tensors, all of them numbers that are finite.

    Raises:
        BundleError: the file is missing or damaged, too large, or holds something else.
        EngineError: the package safetensors is not installed.
    """
    try:
        from safetensors.numpy import load
    except ImportError as error:
        raise EngineError("the package safetensors is not installed; run: pip install safetensors") from error
    path, whose = bundle.path("golden", golden.file), f"bundle {shown(bundle.name)}: {golden.file.path}"
    try:
        with panics_caught():
            tensors: dict[str, NDArray[Any]] = load(read_regular(path, MAX_GOLDEN))
    except MemoryError:
        raise
    except Exception as error:  # the library raises its own
        raise BundleError(f"{whose} cannot be read: {printable(str(error)[:200])}") from error
    for name, values in tensors.items():
        if len(name) > MAX_NAME or values.dtype.kind not in "biuf" or values.size > MAX_GOLDEN_VALUES:
            raise BundleError(
                f"{whose}: golden tensor {shown(name)} holds {values.size} values of {values.dtype}; it may have "
                f"{MAX_GOLDEN_VALUES} numbers"
            )
        if not np.isfinite(values).all():
            raise BundleError(f"{whose}: golden tensor {shown(name)} holds values that are not finite")
    return tensors


def golden_picture(golden: Golden, k: int, tensors: Tensors) -> GoldenPicture:
    """The call of picture ``k``. Raises ``BundleError`` for arguments that no exporter writes, or a missing picture."""
    call, begins = golden.pictures[k], f"picture.{k}."
    for name, value in call.items():
        if name not in ARGUMENTS:
            raise BundleError(f"no argument {shown(name)} of a golden picture; choose from {choices(ARGUMENTS)}")
        if value is not None and not ARGUMENTS[name](value):
            raise BundleError(f"golden.pictures: {name} is {shown(value)}, which no export writes")
    arrays = {name.removeprefix(begins): v for name, v in tensors.items() if name.startswith(begins)}
    if strange := [name for name in arrays if name not in ARRAYS]:
        raise BundleError(f"golden tensor {shown(begins + strange[0])} is no argument; choose from {choices(ARRAYS)}")
    picture = tensors.get(f"picture.{k}")
    if picture is None:
        raise BundleError(f"golden tensor 'picture.{k}' is missing")
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise BundleError(
            f"golden tensor 'picture.{k}' is {picture.dtype} {list(picture.shape)}; pictures are uint8 (H, W, 3)"
        )
    return GoldenPicture({**call, **arrays}, picture)


def cases_of(part: str, tensors: Tensors) -> dict[str, Case]:
    """A part's golden cases by number, from names PART.K.in.NAME and PART.K.out.NAME: the arrays ``in`` and ``out``."""
    out: dict[str, Case] = {}
    for name, value in sorted(tensors.items()):
        if name.startswith(part + "."):
            pieces = name.split(".", 3)
            if len(pieces) != 4 or pieces[2] not in ("in", "out"):
                raise BundleError(f"golden tensor {shown(name)} is none of PART.K.in.NAME and PART.K.out.NAME")
            out.setdefault(pieces[1], {"in": {}, "out": {}})[pieces[2]][pieces[3]] = value
    if len(out) > MAX_CALLS:
        raise BundleError(f"part {part} has {len(out)} golden cases; it may have {MAX_CALLS}")
    return out


def check_case(name: str, part: Part, case: Case) -> None:
    """Raise ``BundleError`` for a case that is none of the part's: other names, types or dimensions."""
    for kind, tensors, given in (("inputs", part.inputs, case["in"]), ("outputs", part.outputs, case["out"])):
        known = {t.name: t for t in tensors}
        if kind == "inputs" and set(given) != set(known):
            raise BundleError(f"a golden case of {name} has inputs {shown(sorted(given))}; it takes {list(known)}")
        for key, values in given.items():
            if key not in known:
                raise BundleError(f"golden output {shown(key)} is none of the part's: {list(known)}")
            if kind == "inputs" and (values.dtype != known[key].dtype or values.ndim != len(known[key].shape)):
                raise BundleError(
                    f"a golden case of {name} has {key} {values.dtype}{list(values.shape)}; it takes "
                    f"{known[key].dtype}[{', '.join(map(str, known[key].shape))}]"
                )
