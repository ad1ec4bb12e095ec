"""A session of ONNX Runtime runs one part, on arrays of the host."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..bundle.manifest import Part
from ..device.base import Device
from ..errors import EngineError
from .base import Provider
from .providers import CPU, line, name_of, session_providers, silence, why_no_library
from .tensors import check_session

TELEMETRY = "ORT_DISABLE_TELEMETRY"
INSTALL = "no engine is installed; install edgediff with its cpu extra (edgediff[cpu]), or run: pip install onnxruntime"


class OnnxRuntimeEngine:
    """An ONNX Runtime engine runs one part in one session. Calls may come from several threads; on a device one runs at
    a time, since ONNX Runtime keeps one handle of cuDNN for all calls on a stream given to it.

    Args:
        name: the part's name, for messages.
        path: the .onnx file.
        part: the manifest's description, which the file must match.
        threads: intra-op threads; all physical cores when None.
        device: where to run, on the device's stream; the CPU when None.
        providers: execution providers by name, or (name, options), in place of those; the CPU's comes last by itself.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        part: Part,
        threads: int | None = None,
        device: Device | None = None,
        providers: Sequence[Provider] | None = None,
    ) -> None:
        ort = import_onnxruntime()
        options = ort.SessionOptions()
        options.log_severity_level = 4  # the library never prints; failures come as exceptions
        if threads is not None:
            options.intra_op_num_threads = threads
        asked = session_providers(ort, name, device, providers)
        first = name_of(asked[0])
        self._lock: AbstractContextManager[Any] = nullcontext() if device is None else device.lock
        try:
            # Opening waits for the whole GPU, which a stream that captures forbids.
            with self._lock, nullcontext() if first == CPU else silence(ort):
                if device is not None:
                    device.use()  # another thread may have closed it, and its stream with it
                self._session = ort.InferenceSession(str(path), options, providers=asked, enable_fallback=0)
                self._session.disable_fallback()  # it prints, and goes on without the GPU
        except Exception as error:
            reason = why_no_library(ort, first) or line(error)
            raise EngineError(f"{name}: ONNX Runtime {ort.__version__} cannot open {path.name}: {reason}") from error
        if first not in self._session.get_providers():
            reason = why_no_library(ort, first) or "a driver or a library is missing, or too old"
            raise EngineError(f"{name}: ONNX Runtime {ort.__version__} could not start {first}: {reason}")
        self.name, self.provider = name, first
        self.inputs, self.outputs = part.inputs, part.outputs
        check_session(name, path.name, part, self._session.get_inputs(), self._session.get_outputs())
        self._names = [t.name for t in part.outputs]
        self._options: Any = None  # of runs on host arrays
        self._device = device  # its stream must outlive the session

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run once. Raises ``EngineError`` naming the part when ONNX Runtime refuses the inputs or fails."""
        try:
            with self._lock:
                if self._device is not None:
                    self._device.use()  # refused after its end, when the session's stream is gone
                return dict(zip(self._names, self._session.run(self._names, inputs, self._options), strict=True))
        except Exception as error:
            shapes = ", ".join(f"{k} {v.dtype}{list(v.shape)}" for k, v in inputs.items())
            raise EngineError(f"{self.name} failed on {shapes}: {line(error)}") from error


def import_onnxruntime() -> Any:
    """Return the onnxruntime module, imported with its telemetry off.

    Telemetry writes a device id and a database into the user's home and warns on stderr where it cannot. It is decided
    when the module is imported, so a program that imports onnxruntime before decides for itself.
    """
    ours = TELEMETRY not in os.environ
    if ours:
        os.environ[TELEMETRY] = "1"
    try:
        import onnxruntime
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime"
        reason = INSTALL if missing else f"onnxruntime is installed and cannot be imported: {line(error)}"
        raise EngineError(reason) from error
    finally:
        if ours:
            del os.environ[TELEMETRY]
    return onnxruntime
