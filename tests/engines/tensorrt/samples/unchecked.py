"""Uses that types cannot check, each to be refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tensorrt as trt


def hidden(engine: trt.ICudaEngine, context: Any, parts: dict[str, Any]) -> None:
    import tensorrt as trt

    context.set_input_shape("sample", 4)  # refused
    parts["context"].execute_async_v3("stream")  # refused
    getattr(engine, "device_memory_size_v2")()  # refused  # noqa: B009
    print(getattr(trt.BuilderFlag, "EDITABLE_TIMING_CACHE", None))  # refused
    print(engine.no_such_attribute)  # type: ignore[attr-defined]  # refused
    if hasattr(trt.BuilderFlag, "EDITABEL_TIMING_CACHE"):  # refused
        print(trt.BuilderFlag.EDITABEL_TIMING_CACHE)  # refused
    if engine is None:
        raise ValueError(trt.no_such_function)  # refused
    print(engine.num_io_tensors, len(parts), f"{context.get_tensor_shape('sample')}")  # refused


class Holder:
    def __init__(self, context: Any, engines: list[Any]) -> None:
        self.context = context
        self.engines = engines

    def run(self, stream: int) -> None:
        self.context.execute_async_v3(stream)  # refused
        self.context.device_memory = stream  # refused
        print([each.num_io_tensors for each in self.engines])  # refused
        for engine in self.engines:
            engine.create_execution_context().set_aux_streams([stream])  # refused


def imported(log: object) -> None:
    import importlib

    module = importlib.import_module("tensorrt")
    runtime = module.Runtime(log)
    print(runtime.deserialize_cuda_engine(b""))  # refused
