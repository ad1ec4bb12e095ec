"""What the library asks of TensorRT, in the idioms that every release's types accept.

A name that some release lacks is guarded by ``hasattr`` of the object that lacks it: its use is then checked
against the releases that have it. ``getattr(trt.BuilderFlag, "X", None)`` is of type ``Any`` in all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorrt as trt


def configure(builder: trt.Builder, config: trt.IBuilderConfig, network: trt.INetworkDefinition) -> memoryview:
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
            self.phases: list[str] = []

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases.append(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.phases.remove(phase_name)

    config.progress_monitor = Monitor()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 30)
    config.builder_optimization_level = 3
    config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)
    if hasattr(trt.BuilderFlag, "EDITABLE_TIMING_CACHE"):
        config.set_flag(trt.BuilderFlag.EDITABLE_TIMING_CACHE)
    if hasattr(trt.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY"):
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    if hasattr(trt, "TilingOptimizationLevel") and hasattr(config, "tiling_optimization_level"):
        config.tiling_optimization_level = trt.TilingOptimizationLevel.FAST
    cache = config.create_timing_cache(b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise RuntimeError
    profile = builder.create_optimization_profile()
    profile.set_shape("sample", (1, 4, 64, 64), (2, 4, 64, 64), (2, 4, 96, 96))
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RuntimeError
    return memoryview(engine)


def parse(path: str, log: trt.ILogger) -> trt.INetworkDefinition:
    import tensorrt as trt

    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(path):
        raise RuntimeError("; ".join(parser.get_error(index).desc() for index in range(parser.num_errors)))
    return network


def load(data: bytes, stream: int) -> trt.IExecutionContext:
    import tensorrt as trt

    class Log(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            print(severity.name, msg)

    log = Log()
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise RuntimeError
    refitter = trt.Refitter(engine, log)
    if not trt.OnnxParserRefitter(refitter, log).refit_from_file("a.onnx") or not refitter.refit_cuda_engine():
        raise RuntimeError
    if hasattr(trt.SerializationFlag, "INCLUDE_REFIT"):
        engine.create_serialization_config().set_flag(trt.SerializationFlag.INCLUDE_REFIT)
    context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    if context is None or not context.set_optimization_profile_async(0, stream):
        raise RuntimeError
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            context.set_input_shape(name, tuple(engine.get_tensor_shape(name)))
        context.set_tensor_address(name, 256)
    context.set_device_memory(512, context.update_device_memory_size_for_shapes())
    context.execute_async_v3(stream)
    return context
