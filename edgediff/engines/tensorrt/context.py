"""A context runs a TensorRT engine for one set of shapes; whatever TensorRT answers is read. Imported as ``engine`` is.

Calls that give nothing back, such as the one that takes scratch memory, tell of a refusal in the log alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...device.array import DeviceArray
from ...device.base import Device
from ...errors import EngineError
from .installed import module
from .log import Log
from .profiles import Shape
from .scratch import Scratch

if TYPE_CHECKING:
    import tensorrt as trt
else:
    trt = module()

ALIGNMENT = 256  # of a tensor's address


class Context:
    """A context is ready to run an engine for inputs of these shapes.

    Args:
        name: the part's name, for messages.
        engine: of the part, in profile 0.
        shapes: of every input, within the profile.
        stream: on which the profile is chosen, and which all calls take.
        log: the engine's.

    Raises:
        EngineError: TensorRT refuses it.
    """

    def __init__(self, name: str, engine: trt.ICudaEngine, shapes: Mapping[str, Shape], stream: int, log: Log) -> None:
        self._name, self._log, self._stream = name, log, stream
        log.take()  # what was said before is no answer to this
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context: trt.IExecutionContext | None = engine.create_execution_context(strategy)
        if context is None:
            raise self._refusal("cannot make a context")
        self.context = context
        if context.active_optimization_profile < 0:  # only an engine's first context begins with profile 0 everywhere
            self._choose_profile()
        for tensor, shape in shapes.items():
            if not context.set_input_shape(tensor, shape):
                raise self._refusal(f"refuses {tensor} of shape {list(shape)}")
        self._scratch = int(context.update_device_memory_size_for_shapes())
        if self._scratch == 0 and log.errors:  # it needs none, or the number could not be found
            raise self._refusal("cannot tell how much scratch memory these shapes take")

    def _choose_profile(self) -> None:
        try:
            chosen = self.context.set_optimization_profile_async(0, self._stream)
        except RuntimeError as error:  # from some bindings, in place of False
            raise self._refusal(f"cannot take profile 0 ({error})") from error
        if not chosen:
            raise self._refusal("cannot take profile 0")

    def shape_of(self, output: str, rank: int) -> Shape:
        """Return an output's shape. Raises ``EngineError``: TensorRT cannot tell it before the call."""
        shape = tuple(int(size) for size in self.context.get_tensor_shape(output))
        if len(shape) != rank or min(shape, default=0) < 0:
            raise EngineError(
                f"{self._name}: the engine gives {output} of shape {list(shape)}, and {rank} sizes are needed"
            )
        return shape

    def enqueue(
        self, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray], device: Device, scratch: Scratch
    ) -> None:
        """Enqueue one call. Raises ``EngineError``: an address that is not aligned, or anything TensorRT refuses."""
        for name, array in outputs.items():
            if (shape := self.shape_of(name, len(array.shape))) != array.shape:
                raise EngineError(f"{self._name}: the engine gives {name} of shape {shape}, not {array.shape}")
        self._log.take()
        for name, array in (*inputs.items(), *outputs.items()):
            self._place(name, array.address)
        address = scratch.reserve(device, self._scratch)
        self.context.set_device_memory(address, self._scratch)
        if self._log.errors:  # it would go on with the memory of the call before
            raise self._refusal(f"refuses {self._scratch} bytes of scratch memory at {address:#x}")
        if not self.context.execute_async_v3(self._stream):
            raise EngineError(f"{self._name} failed: {self._log.take()}")

    def _place(self, tensor: str, address: int) -> None:
        if address % ALIGNMENT:
            raise EngineError(
                f"{self._name}: {tensor} lies at {address:#x}; TensorRT takes addresses that are multiples of "
                f"{ALIGNMENT}"
            )
        if not self.context.set_tensor_address(tensor, address):
            raise self._refusal(f"refuses {address:#x} as the address of {tensor}")

    def _refusal(self, what: str) -> EngineError:
        return EngineError(f"{self._name}: TensorRT {what}: {self._log.take()}")
