"""ONNX Runtime runs parts on the CPU, on a CUDA device, or by any execution provider that is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..bundle.graph_files import graph_path
from ..bundle.manifest import FOREIGN, Bundle, File, Part
from ..device.base import Device
from ..device.cuda import why_no_device
from ..errors import EngineError
from .base import Backend, Engine, EngineOptions, first_file, why_not_file
from .foreign import ForeignEngine, graph_part
from .operators import why_no_foreign
from .own_graphs import OPTION, PARTS, asks_for_graphs, without_graphs
from .providers import CUDA, streams
from .session import INSTALL, OnnxRuntimeEngine, import_onnxruntime

INSTALL_CUDA = "install onnxruntime-gpu in place of onnxruntime"


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
