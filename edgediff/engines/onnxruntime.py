"""ONNX Runtime on the CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..bundle import Part
from ..errors import BundleError, EngineError
from . import INSTALL

TELEMETRY = "ORT_DISABLE_TELEMETRY"


class OnnxRuntimeEngine:
    """One part in one session. Sessions are thread-safe, so calls are too.

    Args:
        name: the part's name, for messages.
        path: the .onnx file.
        part: the manifest's description, which the file must match.
        threads: intra-op threads; all physical cores when None.
    """

    def __init__(self, name: str, path: Path, part: Part, threads: int | None = None) -> None:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 4  # the library never prints; failures come as exceptions
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise EngineError(
                f"{name}: ONNX Runtime {ort.__version__} cannot open {path.name}: {_line(error)}"
            ) from error
        self.name = name
        self.inputs, self.outputs = part.inputs, part.outputs
        for kind, said, found in (
            ("inputs", part.inputs, self._session.get_inputs()),
            ("outputs", part.outputs, self._session.get_outputs()),
        ):
            names, real = [t.name for t in said], [t.name for t in found]
            if names != real:
                raise BundleError(f"{name}: {path.name} has {kind} {real}, the manifest says {names}")
        self._names = [t.name for t in part.outputs]

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run once. Raises ``EngineError`` naming the part when ONNX Runtime refuses the inputs or fails."""
        try:
            return dict(zip(self._names, self._session.run(self._names, inputs), strict=True))
        except Exception as error:
            shapes = ", ".join(f"{k} {v.dtype}{list(v.shape)}" for k, v in inputs.items())
            raise EngineError(f"{self.name} failed on {shapes}: {_line(error)}") from error


def import_onnxruntime() -> Any:
    """The onnxruntime module, imported with its telemetry off.

    Telemetry writes a device id and a database into the user's home and warns on stderr where it cannot. It is decided
    when the module is imported, so a program that imports onnxruntime before decides for itself.
    """
    ours = TELEMETRY not in os.environ
    if ours:
        os.environ[TELEMETRY] = "1"
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(INSTALL) from error
    finally:
        if ours:
            del os.environ[TELEMETRY]
    return onnxruntime


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
