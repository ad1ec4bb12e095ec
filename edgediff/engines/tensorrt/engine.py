"""A TensorRT engine runs an engine file on the device's stream; scratch memory is shared between parts.

This module is imported when an engine file is opened, after ``installed.this_platform``: where there is no driver,
TensorRT would end the process.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...bundle.manifest import Part, Tensor, sha256
from ...device.array import DeviceArray
from ...device.base import Device
from ...device.model import Capture
from ...errors import EngineError
from .context import Context
from .engine_file import BuiltEngine, DamagedEngineFile
from .installed import module
from .log import Log
from .profiles import Shape, why_not_shapes
from .scratch import Scratch

if TYPE_CHECKING:
    import tensorrt as trt
else:
    trt = module()  # the lean runtime has the same names, less the builder's

Made = TypeVar("Made")

MAX_CONTEXTS = 8  # execution contexts, one for each set of shapes and addresses
DTYPES = {
    trt.DataType.FLOAT: "float32",
    trt.DataType.HALF: "float16",
    trt.DataType.BF16: "bfloat16",
    trt.DataType.INT64: "int64",
    trt.DataType.INT32: "int32",
}


class TensorRTEngine:
    """A TensorRT engine runs one part by its engine file.

    Args:
        name: the part's name, for messages.
        part: the manifest's description, which the engine must match.
        built: the engine file, found in the cache and fit to run here.
        device: where; it must outlive the engine.
        scratch: of that device.
        graph: the .onnx file, from which an engine without weights takes them.

    Raises:
        EngineError: TensorRT cannot open the engine file, has no memory for it, or it has other inputs and outputs.
    """

    capture: Capture = "always"
    warm_runs = 1

    def __init__(
        self, name: str, part: Part, built: BuiltEngine, device: Device, scratch: Scratch, graph: Path | None = None
    ) -> None:
        self.name, self.inputs, self.outputs = name, part.inputs, part.outputs
        self._built, self._device, self._scratch = built, device, scratch
        self._log = Log()
        self._contexts: dict[Hashable, Context] = {}
        self._dropped = 0
        device.use()
        self._runtime = self._started(trt.Runtime)
        if built.options.version_compatible:
            self._runtime.engine_host_code_allowed = True  # such a file carries its own runtime; this one we built
        self._engine = self._opened()
        if built.options.stripped:
            self._refit(graph)
        self._check()

    def _started(self, kind: Callable[[Log], Made]) -> Made:
        try:
            return kind(self._log)
        except TypeError as error:  # the bindings' word for a null pointer
            why = self._log.take()
            raise EngineError(f"{self.name}: TensorRT {trt.__version__} cannot start: {why}") from error

    def _opened(self) -> trt.ICudaEngine:
        path = self._built.path
        assert path is not None
        try:
            with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
                engine: trt.ICudaEngine | None = self._runtime.deserialize_cuda_engine(data)
        except (OSError, ValueError) as error:
            raise EngineError(f"{self.name}: the engine file {path} cannot be read: {error}") from error
        if engine is None:
            if sha256(path) != self._built.sha256:
                raise DamagedEngineFile(
                    f"{self.name}: the engine file {path.name} is damaged (another sha256 than when it was built)"
                )
            why = self._log.take()
            raise EngineError(f"{self.name}: TensorRT {trt.__version__} cannot open the engine file {path.name}: {why}")
        return engine

    def _refit(self, graph: Path | None) -> None:
        if not hasattr(trt, "OnnxParserRefitter") or graph is None:
            raise EngineError(f"{self.name}: an engine without weights needs the whole TensorRT, and the ONNX file")
        refitter = self._started(partial(trt.Refitter, self._engine))
        parser = self._started(partial(trt.OnnxParserRefitter, refitter))
        if not parser.refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
            raise EngineError(f"{self.name}: TensorRT cannot take the weights from {graph.name}: {self._log.take()}")

    def _check(self) -> None:
        names = [self._engine.get_tensor_name(k) for k in range(self._engine.num_io_tensors)]
        for kind, mode, tensors in (
            ("inputs", trt.TensorIOMode.INPUT, self.inputs),
            ("outputs", trt.TensorIOMode.OUTPUT, self.outputs),
        ):
            own = {
                name: DTYPES.get(self._engine.get_tensor_dtype(name), "of another type")
                for name in names
                if self._engine.get_tensor_mode(name) == mode
            }
            described = {t.name: t.dtype for t in tensors}
            if own != described:
                raise EngineError(f"{self.name}: the engine has {kind} {own}, the manifest says {described}")

    @property
    def key(self) -> Hashable:
        """Tell what captured graphs depend on besides shapes: where scratch memory is, and which contexts are gone."""
        return self._scratch.address, self._dropped

    def refuses(self, shapes: Mapping[str, Shape]) -> str:
        """Tell why the engine does not take these inputs, or an empty string."""
        return why_not_shapes(self._built.profile, shapes)

    def enqueue(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: int) -> None:
        """Enqueue one call on device memory, on the device's stream.

        Raises:
            EngineError: shapes outside the engine's profile, an address that is not a multiple of 256, or anything
                TensorRT refuses.
        """
        self._enqueue(inputs, outputs, tuple(array.address for array in (*inputs.values(), *outputs.values())))

    def _enqueue(self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], place: Hashable) -> None:
        self._device.use()
        context = self._context({name: array.shape for name, array in inputs.items()}, place)
        context.enqueue(inputs, outputs, self._device, self._scratch)

    def _context(self, shapes: Mapping[str, Shape], place: Hashable) -> Context:
        """Return a context for these shapes at this place alone, since a graph captured with it holds on to both."""
        key = place, tuple(sorted(shapes.items()))
        if key in self._contexts:
            return self._contexts[key]
        if reason := self.refuses(shapes):
            raise EngineError(f"{self.name}: {reason}; build one for it, or use engine='onnx'")
        if len(self._contexts) >= MAX_CONTEXTS:
            self._device.wait(self._device.mark())  # they may be at work
            self._contexts.clear()
            self._dropped += 1
        self._contexts[key] = Context(self.name, self._engine, shapes, self._device.stream, self._log)
        return self._contexts[key]

    def __call__(self, **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Run once on host arrays, and wait."""
        device, types = self._device, {t.name: t for t in self.inputs}
        memory: list[int] = []

        def place(shape: Shape, tensor: Tensor) -> DeviceArray:
            memory.append(device.allocate(DeviceArray(0, shape, tensor.dtype).nbytes))
            return DeviceArray(memory[-1], shape, tensor.dtype)

        with device.lock:
            try:
                taken = {}
                for name, values in inputs.items():
                    taken[name] = place(values.shape, types[name])
                    device.upload(taken[name].address, np.ascontiguousarray(values, types[name].dtype))
                sizes = self._sizes({name: array.shape for name, array in taken.items()})
                made = {t.name: place(sizes[t.name], t) for t in self.outputs}
                self._enqueue(taken, made, None)  # never captured: any place will do
                out = {t.name: np.empty(sizes[t.name], t.dtype) for t in self.outputs}
                for name, values in out.items():
                    device.download(made[name].address, values)
            finally:
                for address in memory:
                    device.free(address)
        return out

    def _sizes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Return the outputs' shapes for these inputs."""
        context = self._context(shapes, None)
        return {t.name: context.shape_of(t.name, len(t.shape)) for t in self.outputs}
