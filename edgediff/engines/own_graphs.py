"""ONNX Runtime's own CUDA graphs are a provider's option, for some parts, since some release."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..errors import ArgumentError
from .base import Provider
from .providers import name_of, options_of

OPTION = "enable_cuda_graph"
# Called at the same addresses again; other sessions may have nodes on the CPU.
PARTS = ("unet", "vae_decoder")
FIRST = (1, 27)  # the release whose replay can do without waiting for the device


def asks_for_graphs(providers: Sequence[Provider] | None) -> bool:
    """Tell whether a provider is given the option."""
    return any(str(options_of(provider).get(OPTION, 0)).lower() in ("1", "true") for provider in providers or ())


def check_own_graphs(providers: Sequence[Provider] | None, ordinal: int | None, cuda_graphs: bool) -> None:
    """Refuse the option where it cannot be kept, by ``ArgumentError``.

    Args:
        ordinal: the number of a CUDA device; None is the CPU.
        cuda_graphs: whether anything may be captured.
    """
    if not asks_for_graphs(providers):
        return
    if ordinal is None:
        raise ArgumentError(f"{OPTION} replays calls on arrays of a GPU; device is 'cpu', give device='cuda'")
    if not cuda_graphs:
        raise ArgumentError(f"providers ask for {OPTION}, and cuda_graphs is False; give one of them")


def without_graphs(providers: Sequence[Provider] | None) -> Sequence[Provider] | None:
    """Return the providers without the option."""
    if not asks_for_graphs(providers):
        return providers
    return [
        provider
        if isinstance(provider, str)
        else (name_of(provider), {name: value for name, value in options_of(provider).items() if name != OPTION})
        for provider in providers or ()
    ]


def why_no_graphs(version: str) -> str:
    """Tell why this release of ONNX Runtime shall not be given the option, or an empty string."""
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) >= FIRST:
        return ""
    first = ".".join(map(str, FIRST))
    return f"ONNX Runtime {version} waits for the device at every replay; {OPTION} needs {first} or newer"
