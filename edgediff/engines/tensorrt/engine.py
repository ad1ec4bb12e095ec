"""A TensorRT engine runs an engine file on the device's stream; scratch memory is shared between parts.

This module is imported when an engine file is opened, after ``installed.this_platform``: where there is no driver,
TensorRT would end the process.
"""

from __future__ import annotations

import mmap
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...bundle.manifest import Part, Tensor, sha256
from ...device.base import Device, DeviceArray
from ...device.model import Capture
from ...errors import EngineError
from .engine_file import BuiltEngine, DamagedEngineFile
from .installed import module
from .profiles import Shape, why_not_shapes

if TYPE_CHECKING:
    import tensorrt as trt
else:
    trt = module()  # the lean runtime has the same names, less the builder's

MAX_CONTEXTS = 8  # execution contexts, one for each set of shapes and addresses
DTYPES = {
    trt.DataType.FLOAT: "float32",
    trt.DataType.HALF: "float16",
    trt.DataType.BF16: "bfloat16",
    trt.DataType.INT64: "int64",
    trt.DataType.INT32: "int32",
}


class Log(trt.ILogger):
    """The log keeps the last errors, for messages: the library never prints."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
            self.errors = [*self.errors[-2:], " ".join(msg.split())]

    def take(self) -> str:
        """Tell what went wrong since the last time."""
        errors, self.errors = self.errors, []
        return "; ".join(errors) or "TensorRT does not say why"


class Scratch:
    """Scratch memory holds activations. One part runs at a time on a device's stream, so one block serves all of them.

    It lives as long as its device, and so holds no reference to it.
    """

    def __init__(self) -> None:
        self.address = self.size = 0

    def reserve(self, device: Device, size: int) -> int:
        """Return the address of at least ``size`` bytes; it changes when the block has to grow."""
        if size > self.size:
            if self.size:
                device.free(self.address)  # once what is enqueued has run
                self.address = self.size = 0
            self.address, self.size = device.allocate(size), size
        return self.address


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
        self._contexts: dict[Hashable, tuple[trt.IExecutionContext, int]] = {}
        self._dropped = 0
        device.use()
        self._runtime = trt.Runtime(self._log)
        if built.options.version_compatible:
            self._runtime.engine_host_code_allowed = True  # such a file carries its own runtime; this one we built
        self._engine = self._opened()
        if built.options.stripped:
            self._refit(graph)
        self._check()

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
        refitter = trt.Refitter(self._engine, self._log)
        parser = trt.OnnxParserRefitter(refitter, self._log)
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
        """Enqueue one call on device memory. Raises ``EngineError`` for shapes outside the engine's profile."""
        self._enqueue(inputs, outputs, stream, tuple(array.address for array in (*inputs.values(), *outputs.values())))

    def _enqueue(
        self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], stream: int, place: Hashable
    ) -> None:
        self._device.use()
        context, size = self._context({name: array.shape for name, array in inputs.items()}, place)
        for name, array in outputs.items():
            if (shape := tuple(context.get_tensor_shape(name))) != array.shape:
                raise EngineError(f"{self.name}: the engine gives {name} of shape {shape}, not {array.shape}")
        for name, array in (*inputs.items(), *outputs.items()):
            context.set_tensor_address(name, array.address)
        context.set_device_memory(self._scratch.reserve(self._device, size), size)
        if not context.execute_async_v3(stream):
            raise EngineError(f"{self.name} failed: {self._log.take()}")

    def _context(self, shapes: Mapping[str, Shape], place: Hashable) -> tuple[trt.IExecutionContext, int]:
        """Return a context for these shapes at this place alone, since a graph captured with it holds on to both; and
        the size of its scratch memory.
        """
        key = place, tuple(sorted(shapes.items()))
        if key in self._contexts:
            return self._contexts[key]
        if reason := self.refuses(shapes):
            raise EngineError(f"{self.name}: {reason}; build one for it, or use engine='onnx'")
        if len(self._contexts) >= MAX_CONTEXTS:
            self._device.wait(self._device.mark())  # they may be at work
            self._contexts.clear()
            self._dropped += 1
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context: trt.IExecutionContext | None = self._engine.create_execution_context(strategy)
        if context is None:
            raise EngineError(f"{self.name}: TensorRT cannot make a context: {self._log.take()}")
        if context.active_optimization_profile < 0:  # only an engine's first context begins with profile 0 everywhere
            context.set_optimization_profile_async(0, self._device.stream)
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise EngineError(f"{self.name}: TensorRT refuses {name} of shape {list(shape)}: {self._log.take()}")
        self._contexts[key] = context, context.update_device_memory_size_for_shapes()
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
                self._enqueue(taken, made, device.stream, None)  # never captured: any place will do
                out = {t.name: np.empty(sizes[t.name], t.dtype) for t in self.outputs}
                for name, values in out.items():
                    device.download(made[name].address, values)
            finally:
                for address in memory:
                    device.free(address)
        return out

    def _sizes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Return the outputs' shapes for these inputs."""
        context, _ = self._context(shapes, None)
        return {t.name: tuple(context.get_tensor_shape(t.name)) for t in self.outputs}
