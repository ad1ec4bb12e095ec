"""ONNX Runtime runs parts on the CPU, on a CUDA device, or by any execution provider that is installed."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..bundle.graph_files import graph_path
from ..bundle.manifest import FOREIGN, Bundle, File, Part
from ..device.base import Device
from ..device.cuda import why_no_device
from ..errors import EngineError
from .base import Backend, Engine, EngineOptions, Provider, first_file, why_not_file
from .foreign import ForeignEngine, graph_part
from .operators import why_no_foreign
from .own_graphs import OPTION, PARTS, asks_for_graphs, without_graphs
from .providers import CPU, CUDA, line, name_of, session_providers, silence, streams, why_no_library
from .tensors import check_session

TELEMETRY = "ORT_DISABLE_TELEMETRY"
INSTALL = "no engine is installed; install edgediff with its cpu extra (edgediff[cpu]), or run: pip install onnxruntime"
INSTALL_CUDA = "install onnxruntime-gpu in place of onnxruntime"


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
                return dict(zip(self._names, self._session.run(self._names, inputs, self._options), strict=True))
        except Exception as error:
            shapes = ", ".join(f"{k} {v.dtype}{list(v.shape)}" for k, v in inputs.items())
            raise EngineError(f"{self.name} failed on {shapes}: {line(error)}") from error


class OnnxRuntime:
    """ONNX Runtime opens a part's ONNX file on the CPU, on a CUDA device, or by other execution providers."""

    name, word = "ONNX Runtime", "onnx"
    devices: tuple[str, ...] = ("cpu", "cuda")
    runs: tuple[str, ...] = ("onnx", FOREIGN)

    def why_not(self, bundle: Bundle, part: str, options: EngineOptions, ordinal: int | None) -> tuple[str, ...]:
        reasons = [] if ordinal is None else [why_no_device(ordinal), _why_no_cuda()]
        if first_file(bundle.parts[part], self.runs, _why_missing())[0] is None:
            reasons += [why_not_file(file, self.runs) or _why_missing() for file in bundle.parts[part].files]
        elif bundle.foreign is not None:
            reasons.append(why_no_foreign(import_onnxruntime(), bundle, part, options, ordinal))
        return tuple(dict.fromkeys(filter(None, reasons)))

    def describe(self, bundle: Bundle, part: str, options: EngineOptions, ordinal: int | None) -> str:
        return str(import_onnxruntime().__version__)

    def open(self, bundle: Bundle, part: str, options: EngineOptions, device: Device | None) -> Engine:
        manifest = bundle.parts[part]
        file, reasons = first_file(manifest, self.runs, _why_missing())
        if file is None:
            raise EngineError(f"{part} cannot run here: {'; '.join(reasons)}")
        if bundle.foreign is not None:
            return self._open_foreign(bundle, part, file, options, device)
        return self.engine(part, partial(graph_path, bundle, part, file), manifest, options, device)

    def _open_foreign(
        self, bundle: Bundle, part: str, file: File, options: EngineOptions, device: Device | None
    ) -> Engine:
        """Open another exporter's graph. Arrays go through the host, since they are adapted there."""
        assert bundle.foreign is not None
        ordinal = None if device is None else device.ordinal
        if reason := why_no_foreign(import_onnxruntime(), bundle, part, options, ordinal):
            raise EngineError(f"{part}: {reason}")
        adaptation, shown = bundle.foreign.parts[part], bundle.parts[part]
        path = partial(graph_path, bundle, part, file)
        engine = self.engine(part, path, graph_part(adaptation), options, device, arrays=True)
        return ForeignEngine(part, engine, shown, adaptation, bundle.latent)

    def engine(
        self,
        part: str,
        path: Callable[[], Path],
        manifest: Part,
        options: EngineOptions,
        device: Device | None,
        arrays: bool = False,
    ) -> Engine:
        """Open a file.

        Args:
            part: its name, for messages.
            path: gives the .onnx file, after it and its weights were checked.
            manifest: what the file must match.
            arrays: whether the engine is called with arrays in host memory alone.
        """
        providers = options.providers if part in PARTS else without_graphs(options.providers)
        if device is not None and not arrays and streams(device, providers):
            from .onnxruntime_stream import OnnxRuntimeStreamEngine  # which is made of this module's engine

            return OnnxRuntimeStreamEngine(
                part, path(), manifest, options.threads, device, providers, options.cuda_graphs
            )
        if asks_for_graphs(providers):
            raise EngineError(f"{part}: {OPTION} needs arrays that stay on a CUDA device; here they are the host's")
        return OnnxRuntimeEngine(part, path(), manifest, options.threads, device, providers)


BACKEND: Backend = OnnxRuntime()


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


def _why_missing() -> str:
    if importlib.util.find_spec("onnxruntime") is None:
        return INSTALL
    try:
        import_onnxruntime()
    except EngineError as error:
        return str(error)
    return ""


def _why_no_cuda() -> str:
    try:
        ort = import_onnxruntime()
    except EngineError as error:
        return str(error)
    return "" if CUDA in ort.get_available_providers() else f"{ort.__version__} has no {CUDA}; {INSTALL_CUDA}"
