"""Operators outside ONNX's own, and which execution providers have kernels for them, told before anything is opened."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from ..bundle.manifest import Bundle
from ..bundle.onnx_file.header import GraphHeader
from ..errors import choices
from .base import EngineOptions
from .providers import CPU, CUDA, name_of

OWN = ("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc", "ai.onnx.ml", "ai.onnx.preview.training")
# What ONNX Runtime's optimiser writes into graphs for GPUs.
GPU_ONLY = ("NhwcConv", "GroupNorm", "SkipGroupNorm", "BiasSplitGelu", "BiasAdd", "PackedAttention",
            "PackedMultiHeadAttention", "GemmFastGelu", "GemmFloat8")  # fmt: skip


def why_no_kernel(ort: Any, header: GraphHeader, providers: Sequence[str]) -> str:
    """Tell which operators of a graph none of these providers runs, or an empty string.

    Args:
        ort: the module onnxruntime.
        providers: by name, in their order.
    """
    custom = [(domain, name) for domain, name in header.custom if name not in header.functions]  # not written out there
    if strange := [f"{domain}.{name}" for domain, name in custom if domain not in OWN]:
        return f"its graph holds {choices(strange[:5])}, of a library that ONNX Runtime does not have"
    if set(providers) != {CPU}:
        return ""  # a GPU's kernels are not listed before its library is loaded
    kernels = cpu_kernels(ort)
    missing = [name for _, name in custom if (name not in kernels if kernels else name in GPU_ONLY)]
    if not missing:
        return ""
    made = f"; it is made for {CUDA}" if set(missing) & set(GPU_ONLY) else ""
    named = choices(f"{domain}.{name}" for domain, name in custom if name in missing[:5])
    return f"its graph holds {named}, for which ONNX Runtime {ort.__version__} has no kernel on a CPU{made}"


def why_no_foreign(ort: Any, bundle: Bundle, part: str, options: EngineOptions, ordinal: int | None) -> str:
    """Tell which operators of another exporter's graph have no kernel on a device, or an empty string."""
    assert bundle.foreign is not None
    own = [CPU] if ordinal is None else [CUDA, CPU]
    providers = own if options.providers is None else [name_of(provider) for provider in options.providers]
    return why_no_kernel(ort, bundle.foreign.parts[part].header, providers)


@cache
def cpu_kernels(ort: Any) -> frozenset[str]:
    """The operators outside ONNX's own domain that ONNX Runtime has on the CPU; empty where it does not tell."""
    try:
        kernels = ort.capi._pybind_state.get_all_opkernel_def()
    except AttributeError:
        return frozenset()
    return frozenset(k.op_name for k in kernels if k.domain and k.provider == CPU)
