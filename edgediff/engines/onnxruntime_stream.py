"""ONNX Runtime on a device's stream: calls on device memory, bound once, and what may be captured of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.manifest import Part
from ..device.array import DeviceArray
from ..device.base import Device
from ..device.model import Capture
from ..errors import EngineError, EngineWarning, warn_caller
from .base import Provider
from .own_graphs import asks_for_graphs, why_no_graphs
from .providers import CPU, CUDA, line, on_gpu
from .session import OnnxRuntimeEngine, import_onnxruntime

MAX_BINDINGS = 32  # calls that are kept bound, by addresses and shapes
ASYNCHRONOUS = "disable_synchronize_execution_providers"
GRAPH = "gpu_graph_id"  # -1 captures nothing


class OnnxRuntimeStreamEngine(OnnxRuntimeEngine):
    """A stream engine's session works on a device's stream.

    Its calls may become part of the loop's graphs, where the loop finds that such a graph gives what calls give. With
    the option ``enable_cuda_graph`` of the CUDA provider, ONNX Runtime captures each call by itself instead, the first
    time, by addresses and shapes, and replays it afterwards.

    Args:
        cuda_graphs: whether anything may be captured; for the others see ``OnnxRuntimeEngine``.

    Raises:
        EngineError: this ONNX Runtime waits for the device at every replay of its own graphs.
    """

    warm_runs = 3  # memory is laid out by the first call, and by a pattern of it from the second on

    def __init__(
        self,
        name: str,
        path: Path,
        part: Part,
        threads: int | None,
        device: Device,
        providers: Sequence[Provider] | None = None,
        cuda_graphs: bool = True,
    ) -> None:
        ort = import_onnxruntime()
        self._own_graphs = asks_for_graphs(providers)
        if self._own_graphs and (reason := why_no_graphs(ort.__version__)):
            raise EngineError(f"{name}: {reason}")
        super().__init__(name, path, part, threads, device, providers)
        proven = cuda_graphs and not self._own_graphs and self.provider in (CUDA, CPU)
        self.capture: Capture = "proven" if proven else "never"
        self._place = ("cuda", device.ordinal) if on_gpu(device) else ("cpu", 0)
        self._make_options, self._use = ort.RunOptions, device.use
        self._bound: dict[Hashable, tuple[Any, Any]] = {}  # bindings, with the options of their runs
        self._captured = 0  # graphs that ONNX Runtime was asked for
        self._shapes: set[Hashable] = set()  # that the session has worked on
        if self._own_graphs:
            self._options = self._run_options({GRAPH: "-1"})  # host arrays move: nothing to capture

    @property
    def key(self) -> Hashable:
        """Tell how many sets of shapes the session has worked on. A kernel may keep memory of its own from the first
        call on a set, where an earlier graph works in what was free.
        """
        return max(1, len(self._shapes))

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        self._shapes.add(tuple(values.shape for values in inputs.values()))
        return super().__call__(**inputs)

    def enqueue(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: int) -> None:
        """Enqueue one call on device memory, on the stream that the session was made for.

        Raises:
            EngineError: the device is closed, and its stream with it; or ONNX Runtime refuses the call or fails.
        """
        key = tuple((name, a.address, a.shape, a.dtype) for d in (inputs, outputs) for name, a in d.items())
        with self._lock:
            try:
                self._use()  # a session would go on with a stream and memory that are gone
                binding, options = self._bound.get(key) or self._bind(key, inputs, outputs)
                self._session.run_with_iobinding(binding, options)
            except Exception as error:
                self._bound.pop(key, None)
                shapes = ", ".join(f"{k} {v.dtype}{list(v.shape)}" for k, v in inputs.items())
                raise EngineError(f"{self.name} failed on {shapes}: {line(error)}") from error

    def _bind(
        self, key: Hashable, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]
    ) -> tuple[Any, Any]:
        """Bind a call, and keep it in place of the oldest."""
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, *self._place, np.dtype(array.dtype), array.shape, array.address)
        for name, array in outputs.items():
            binding.bind_output(name, *self._place, np.dtype(array.dtype), array.shape, array.address)
        self._shapes.add(tuple(array.shape for array in inputs.values()))
        self._bound[key] = binding, self._run_options({ASYNCHRONOUS: "1", **self._own_graph()})
        if len(self._bound) > MAX_BINDINGS:
            del self._bound[next(iter(self._bound))]
        return self._bound[key]

    def _own_graph(self) -> dict[str, str]:
        """The number of the graph that ONNX Runtime shall capture next; it keeps every one, so there is a limit."""
        if not self._own_graphs:
            return {}
        self._captured += 1
        if self._captured <= MAX_BINDINGS:
            return {GRAPH: str(self._captured)}
        if self._captured == MAX_BINDINGS + 1:
            held = f"ONNX Runtime holds {MAX_BINDINGS} graphs and drops none"
            warn_caller(f"{self.name}: {held}; calls at other addresses run without", EngineWarning)
        return {GRAPH: "-1"}

    def _run_options(self, entries: Mapping[str, str]) -> Any:
        options = self._make_options()
        for name, value in entries.items():
            options.add_run_config_entry(name, value)
        return options
