"""The source of an engine file is a part's typed ONNX graph, without fused attention, and the weights beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...bundle.graph_files import graph_path
from ...bundle.manifest import PLAIN, WEIGHTS, Bundle, File
from ...errors import EngineError

TYPED = ("fp16", "fp32")  # precisions whose graphs carry their types, which TensorRT follows


@dataclass(frozen=True)
class EngineSource:
    """An engine source is what a part's engine file is built from."""

    path: Path
    graph: str  # sha256
    weights: tuple[str, ...]
    size: int  # bytes, with the weights


def source_of(bundle: Bundle, part: str) -> EngineSource:
    """Return the source of a part; its files are there and of the right size.

    Raises:
        EngineError: the part has none; the message says which precision to export.
        BundleError: a file is missing or damaged.
    """
    files = bundle.parts[part].files
    chosen = next((f for f in files if f.engine == PLAIN), None)
    if chosen is None:
        chosen = next((f for f in files if f.engine == "onnx" and f.precision in TYPED), None)
    if chosen is None or (chosen.engine == "onnx" and _is_fused(bundle.path(part, chosen, hashed=False))):
        precisions = ", ".join(dict.fromkeys(f.precision for f in files))
        raise EngineError(
            f"{part}: TensorRT builds from graphs exported with --precision fp16; bundle {bundle.name!r} has "
            f"{precisions}"
        )
    weights = [f for f in files if f.engine == WEIGHTS and f.path.startswith(_stem(chosen))]
    graph = graph_path(bundle, part, chosen)
    return EngineSource(graph, chosen.sha256, tuple(f.sha256 for f in weights), sum(f.size for f in (chosen, *weights)))


def _stem(file: File) -> str:
    return file.path.removesuffix(".onnx").removesuffix(".plain") + ".onnx"


def _is_fused(path: Path) -> bool:
    """Tell whether the graph holds nodes of ONNX Runtime's own. Their domain's name stands in the file as it is."""
    with path.open("rb") as f:
        tail = b""
        while piece := f.read(1 << 20):
            if b"com.microsoft" in tail + piece:
                return True
            tail = piece[-16:]
    return False
