"""What a graph that is being captured holds, where an engine did not mean its work to be captured."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ..errors import EngineError
from .base import Device

# Nodes that read and write device memory alone; cuBLAS takes its workspace as memory of the graph.
PLAIN = ("KERNEL", "MEMSET", "EMPTY", "MEM_ALLOC", "MEM_FREE")


class HostWorkError(EngineError):
    """A graph would hold work that only its own call can do; another capture would, too."""


def refuse_host_work(device: Device) -> None:
    """Refuse, by ``HostWorkError``, the capture of work that only its own call can do.

    Some kernels of ONNX Runtime (Concat of unequal parts, as Stable Diffusion's U-Nets have) copy addresses from host
    memory that is theirs for one call, and a host function gives it back. A graph would read that memory, and give it
    back, at every launch; values may look right until somebody else has it. Call it at the end of what is captured.
    """
    if device.ordinal < 0:
        return  # the host's graphs are calls
    from cuda.bindings import driver

    _, status, _, graph, *_ = _checked(driver, "cuStreamGetCaptureInfo", device.stream)
    if status != driver.CUstreamCaptureStatus.CU_STREAM_CAPTURE_STATUS_ACTIVE:
        return  # whoever ends the capture is told why it is broken
    _, _, count = _checked(driver, "cuGraphGetNodes", graph)
    _, nodes, _ = _checked(driver, "cuGraphGetNodes", graph, count)
    if found := Counter(kind for node in nodes[:count] if (kind := _host_work(driver, node))):
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(found.items()))
        raise HostWorkError(f"its graph would hold work that cannot be done again: {told}")


def _host_work(driver: Any, node: Any) -> str:
    """Name a node that does more than read and write device memory; an empty string for others."""
    kind = _checked(driver, "cuGraphNodeGetType", node)[1].name.removeprefix("CU_GRAPH_NODE_TYPE_")
    if kind != "MEMCPY":
        return "" if kind in PLAIN else str(kind)
    copied = _checked(driver, "cuGraphMemcpyNodeGetParams", node)[1]
    ends = copied.srcMemoryType, copied.dstMemoryType
    return "MEMCPY with host memory" if driver.CUmemorytype.CU_MEMORYTYPE_HOST in ends else ""


def _checked(driver: Any, function: str, *arguments: Any) -> Any:
    results = getattr(driver, function)(*arguments)
    if results[0] != driver.CUresult.CUDA_SUCCESS:
        raise EngineError(f"{function} gave {results[0].name}")
    return results
