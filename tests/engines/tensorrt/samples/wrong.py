"""Mistakes, each with the releases whose types must report it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tensorrt as trt


def mistakes(engine: trt.ICudaEngine, context: trt.IExecutionContext, config: trt.IBuilderConfig) -> None:
    import tensorrt as trt

    print(engine.no_such_attribute)  # wrong in 10.3 10.13 11.4
    print(engine.device_memory_size)  # wrong in 11.4
    print(engine.weight_streaming_budget)  # wrong in 11.4
    print(engine.create_execution_context_without_device_memory())  # wrong in 11.4
    engine.device_memory_size_v2 = 3  # wrong in 10.3 10.13 11.4
    print(trt.NoSuchClass)  # wrong in 10.3 10.13 11.4
    print(trt.BuilderFlag.NO_SUCH_MEMBER)  # wrong in 10.3 10.13 11.4
    print(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)  # wrong in 11.4
    config.set_flag(trt.BuilderFlag.FP16)  # wrong in 11.4
    config.set_flag(trt.BuilderFlag.EDITABLE_TIMING_CACHE)  # wrong in 10.3
    config.set_flag(trt.MemoryPoolType.WORKSPACE)  # wrong in 10.3 10.13 11.4
    config.tiling_optimization_level = trt.TilingOptimizationLevel.FAST  # wrong in 10.3
    if hasattr(config, "tiling_optimization_level"):
        config.tiling_optimization_level = 1  # wrong in 10.13 11.4
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size=1)  # wrong in 10.3 10.13 11.4
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1.5)  # wrong in 10.3 10.13 11.4
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)  # wrong in 10.3 10.13 11.4
    context.set_tensor_address("sample", "address")  # wrong in 10.3 10.13 11.4
    context.set_tensor_address(name="sample", pointer=1)  # wrong in 10.3 10.13 11.4
    context.set_input_shape("sample", 4)  # wrong in 10.3 10.13 11.4
    context.execute_async_v2([], 0)  # wrong in 10.3 10.13 11.4
    engine.create_execution_context().execute_async_v3(0)  # wrong in 10.3 10.13 11.4
    print(trt.IBuilderConfig())  # wrong in 10.3 10.13 11.4
    print(trt.SerializationFlag.INCLUDE_REFIT)  # wrong in 10.3 10.13


class Monitor:
    def phase_start(self, phase_name: str) -> None: ...


def not_a_monitor(config: trt.IBuilderConfig) -> None:
    config.progress_monitor = Monitor()  # wrong in 10.3 10.13 11.4
