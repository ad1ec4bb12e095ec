"""ONNX Runtime: on the CPU, on a CUDA device, or by any execution provider that is installed."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import HASH_LIMIT, PLAIN, WEIGHTS, Bundle, File, Part
from ..device.base import Device, DeviceArray
from ..errors import BundleError, EngineError, choices
from .base import Engine, Provider

TELEMETRY = "ORT_DISABLE_TELEMETRY"
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# Those that can run on a stream of ours, with the same options.
STREAMED = (CUDA, "TensorrtExecutionProvider", "NvTensorRTRTXExecutionProvider")


class OnnxRuntimeEngine:
    """One part in one session. Calls may come from several threads; on a device one runs at a time, since ONNX Runtime
    keeps one handle of cuDNN for all calls on a stream given to it.

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
        wanted = [CUDA] if providers is None and _on_gpu(device) else list(providers or ())
        _check_providers(ort, name, wanted)
        if any(_name(one) in STREAMED for one in wanted):
            _preload(ort)
        wanted = [_on_stream(one, device) for one in wanted]
        if CPU not in map(_name, wanted):
            wanted.append(CPU)
        self._lock: AbstractContextManager[Any] = nullcontext() if device is None else device.lock
        first = _name(wanted[0])
        try:
            # Opening waits for the whole GPU, which a stream that captures forbids.
            with self._lock, _silent(ort, first != CPU):
                self._session = ort.InferenceSession(str(path), options, providers=wanted, enable_fallback=0)
                self._session.disable_fallback()  # it prints, and goes on without the GPU
        except Exception as error:
            reason = _why_no_library(ort, first) or _line(error)
            raise EngineError(f"{name}: ONNX Runtime {ort.__version__} cannot open {path.name}: {reason}") from error
        if first not in self._session.get_providers():
            reason = _why_no_library(ort, first) or "a driver or a library is missing, or too old"
            raise EngineError(f"{name}: ONNX Runtime {ort.__version__} could not start {first}: {reason}")
        self.name, self.provider = name, first
        self.inputs, self.outputs = part.inputs, part.outputs
        for kind, said, found in (
            ("inputs", part.inputs, self._session.get_inputs()),
            ("outputs", part.outputs, self._session.get_outputs()),
        ):
            names, real = [t.name for t in said], [t.name for t in found]
            if names != real:
                raise BundleError(f"{name}: {path.name} has {kind} {real}, the manifest says {names}")
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
            raise EngineError(f"{self.name} failed on {shapes}: {_line(error)}") from error


class OnnxRuntimeStreamEngine(OnnxRuntimeEngine):
    """One whose session works on a device's stream; arguments are those of ``OnnxRuntimeEngine``.

    With the option ``enable_cuda_graph`` of the CUDA provider, ONNX Runtime captures each call of the loop the first
    time, by addresses and shapes, and replays it afterwards.
    """

    capturable = False  # ONNX Runtime captures its own graphs, and fails inside another's
    key = None

    def __init__(
        self,
        name: str,
        path: Path,
        part: Part,
        threads: int | None,
        device: Device,
        providers: Sequence[Provider] | None = None,
    ) -> None:
        super().__init__(name, path, part, threads, device, providers)
        self._place = ("cuda", device.ordinal) if _on_gpu(device) else ("cpu", 0)
        self._make_options = import_onnxruntime().RunOptions
        self._graphs: dict[Hashable, Any] | None = None  # options of each call that is captured
        if any(str(_options(one).get("enable_cuda_graph", 0)) in ("1", "True") for one in providers or ()):
            self._graphs = {}
            self._options = self._run_options(gpu_graph_id="-1")  # host arrays move: nothing to capture
        self._asynchronous = self._run_options(disable_synchronize_execution_providers="1")

    def _run_options(self, **entries: str) -> Any:
        options = self._make_options()
        for name, value in entries.items():
            options.add_run_config_entry(name, value)
        return options

    def _options_for(self, arrays: Sequence[DeviceArray]) -> Any:
        if self._graphs is None:
            return self._asynchronous
        key = tuple((array.address, array.shape) for array in arrays)
        if key not in self._graphs:
            number = str(len(self._graphs) + 1)
            self._graphs[key] = self._run_options(disable_synchronize_execution_providers="1", gpu_graph_id=number)
        return self._graphs[key]

    def enqueue(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: int) -> None:
        """Enqueue one call on device memory, on the stream that the session was made for."""
        binding = self._session.io_binding()
        try:
            for name, array in inputs.items():
                binding.bind_input(name, *self._place, np.dtype(array.dtype), array.shape, array.address)
            for name, array in outputs.items():
                binding.bind_output(name, *self._place, np.dtype(array.dtype), array.shape, array.address)
            with self._lock:
                self._session.run_with_iobinding(binding, self._options_for([*inputs.values(), *outputs.values()]))
        except Exception as error:
            shapes = ", ".join(f"{k} {v.dtype}{list(v.shape)}" for k, v in inputs.items())
            raise EngineError(f"{self.name} failed on {shapes}: {_line(error)}") from error


def open_session(
    name: str,
    path: Path,
    part: Part,
    threads: int | None = None,
    device: Device | None = None,
    providers: Sequence[Provider] | None = None,
) -> OnnxRuntimeEngine:
    """The engine of ``device``'s stream where the first provider works on one; others would run beside it, so they get
    host arrays.
    """
    if device is not None and (providers is None or _name(providers[0]) in STREAMED):
        return OnnxRuntimeStreamEngine(name, path, part, threads, device, providers)
    return OnnxRuntimeEngine(name, path, part, threads, device, providers)


def _name(provider: Provider) -> str:
    return provider if isinstance(provider, str) else provider[0]


def _options(provider: Provider) -> Mapping[str, Any]:
    return {} if isinstance(provider, str) else provider[1]


def _preload(ort: Any) -> None:
    """CUDA's libraries from pip's packages, where they are not the system's. What it says of those that are missing is
    for a screen, and comes again, as an error, from whatever needs them.
    """
    if hasattr(ort, "preload_dlls"):
        ort.print = lambda *_, **__: None  # in that module alone
        try:
            ort.preload_dlls()
        finally:
            del ort.print


@contextmanager
def _silent(ort: Any, yes: bool) -> Iterator[None]:
    """Providers complain to the default logger, whatever a session's own says; 2, for warnings, is how it begins."""
    if yes:
        ort.set_default_logger_severity(4)
    try:
        yield
    finally:
        if yes:
            ort.set_default_logger_severity(2)


def _why_no_library(ort: Any, provider: str) -> str:
    """What the loader says of a provider's library that ONNX Runtime could not load, or an empty string."""
    stem = provider.removesuffix("ExecutionProvider").lower()
    library = Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{stem}.so"
    try:
        if library.is_file():
            ctypes.CDLL(str(library))  # one that is loaded already is not loaded again
    except OSError as error:
        return _line(error)
    return ""


def _on_gpu(device: Device | None) -> bool:
    return device is not None and device.ordinal >= 0


def _on_stream(provider: Provider, device: Device | None) -> Provider:
    """The provider on the device's stream, so that calls are ordered with the loop's other work."""
    if device is None or not _on_gpu(device) or _name(provider) not in STREAMED:
        return provider
    facts = {"device_id": device.ordinal, "has_user_compute_stream": 1, "user_compute_stream": device.stream}
    # By itself the arena doubles, and keeps what it took.
    first = {"arena_extend_strategy": "kSameAsRequested"} if _name(provider) == CUDA else {}
    return _name(provider), {**first, **_options(provider), **{key: str(value) for key, value in facts.items()}}


def _check_providers(ort: Any, name: str, wanted: Sequence[Provider]) -> None:
    here = ort.get_available_providers()
    for provider in wanted:
        if _name(provider) not in here:
            hint = "; install onnxruntime-gpu in place of onnxruntime" if "CUDA" in _name(provider) else ""
            raise EngineError(
                f"{name}: ONNX Runtime {ort.__version__} has no {_name(provider)}; choose from {choices(here)}{hint}"
            )


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


INSTALL = "no engine is installed; install edgediff with its cpu extra (edgediff[cpu]), or run: pip install onnxruntime"


def why_not(file: File) -> str:
    """Why this file cannot run here, or an empty string. Nothing is imported."""
    if file.engine == WEIGHTS:
        return "holds weights of the file before it"
    if file.engine == PLAIN:
        return "a graph for building TensorRT engines, which fuse attention by themselves"
    if file.engine != "onnx":
        return f"no backend for engine {file.engine!r}"
    if importlib.util.find_spec("onnxruntime") is None:
        return INSTALL
    return ""


def open_part(
    bundle: Bundle,
    name: str,
    threads: int | None = None,
    device: Device | None = None,
    providers: Sequence[Provider] | None = None,
) -> Engine:
    """Open the first runnable file of a part, on the CPU when ``device`` is None; ``providers`` are ONNX Runtime's.

    Raises:
        EngineError: no file can run here; the message holds the reason for each.
        BundleError: a file is missing or damaged.
    """
    reasons = []
    for file in bundle.parts[name].files:
        if reason := why_not(file):
            reasons.append(f"{file.path}: {reason}")
            continue
        path = bundle.path(name, file, hashed=file.size <= HASH_LIMIT)
        for data in bundle.parts[name].files:
            if data.engine == WEIGHTS and data.path.startswith(file.path):
                bundle.path(name, data, hashed=data.size <= HASH_LIMIT)
        pass

        return open_session(name, path, bundle.parts[name], threads, device, providers)
    raise EngineError(f"{name} cannot run here: {'; '.join(dict.fromkeys(reasons))}")
