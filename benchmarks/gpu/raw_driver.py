"""NVIDIA's driver as cuda-bindings gives it, with two kernels: one that spins, one that is empty."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from edgediff.device.cuda.nvrtc import nvrtc_version
from edgediff.device.driver import probe

SOURCE = r"""
extern "C" __global__ void spin(unsigned long long* out, unsigned long long nanoseconds) {
  unsigned long long start, now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
  do { asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)); } while (now - start < nanoseconds);
  *out = now - start;
}
extern "C" __global__ void nothing(unsigned long long* out) {}
"""


class DriverError(RuntimeError):
    """A call of the driver failed."""


class RawDriver:
    """The driver of the first GPU: its context, a stream, the default memory pool and the two kernels.

    Raises:
        EngineError: there is no driver or no GPU.
        DriverError: a call failed.
    """

    def __init__(self) -> None:
        gpu = probe()
        from cuda.bindings import driver

        self._driver = driver
        self.call("cuInit", 0)
        self.device = self.call("cuDeviceGet", 0)
        self.call("cuCtxSetCurrent", self.call("cuDevicePrimaryCtxRetain", self.device))
        self.stream = self.call("cuStreamCreate", driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self.pool = self.call("cuDeviceGetDefaultMemPool", self.device)
        threshold = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
        self.call("cuMemPoolSetAttribute", self.pool, threshold, driver.cuuint64_t(2**64 - 1))  # as cuda-core does
        code = compiled(gpu.capability)
        self._library = self.call("cuLibraryLoadData", code, [], [], 0, [], [], 0)
        self._kernels = {
            name: self.call("cuKernelGetFunction", self.call("cuLibraryGetKernel", self._library, name.encode()))
            for name in ("spin", "nothing")
        }
        self._out = self.take(8)
        self.spin(0)  # the driver loads a kernel at its first launch
        self.nothing()
        self.call("cuStreamSynchronize", self.stream)

    def both(self, function: str, *args: Any) -> tuple[Any, ...]:
        """The name of what a function of the driver gives, and its values."""
        code, *values = getattr(self._driver, function)(*args)
        return (code.name, *values)

    def try_call(self, function: str, *args: Any) -> str:
        """The name of what a function of the driver gives."""
        return str(self.both(function, *args)[0])

    def call(self, function: str, *args: Any) -> Any:
        """The one value of a function of the driver, or None."""
        name, *values = self.both(function, *args)
        if name != "CUDA_SUCCESS":
            raise DriverError(f"{function} gave {name}")
        return values[0] if values else None

    def event(self) -> Any:
        return self.call("cuEventCreate", self._driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)

    def take(self, size: int) -> int:
        """Allocate from the pool."""
        return int(self.call("cuMemAllocAsync", size, self.stream))

    def give(self, address: int) -> None:
        """Free to the pool."""
        self.call("cuMemFreeAsync", address, self.stream)

    def pool_reserved(self) -> int:
        """The bytes that the pool holds."""
        which = self._driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT
        return int(self.call("cuMemPoolGetAttribute", self.pool, which))

    def spin(self, seconds: float) -> None:
        """Enqueue work of so many seconds."""
        self._launch("spin", (self._out, round(1e9 * seconds)), (ctypes.c_uint64, ctypes.c_uint64))

    def nothing(self) -> None:
        """Enqueue a kernel that does nothing."""
        self._launch("nothing", (self._out,), (ctypes.c_uint64,))

    def _launch(self, name: str, values: tuple[int, ...], types: tuple[Any, ...]) -> None:
        self.call("cuLaunchKernel", self._kernels[name], 1, 1, 1, 1, 1, 1, 0, self.stream, (values, types), 0)

    def graph_of(self, work: Callable[[], Any]) -> Any:
        """The graph, ready to be launched, of what ``work`` enqueues."""
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.call("cuStreamBeginCapture", self.stream, mode)
        work()
        graph = self.call("cuStreamEndCapture", self.stream)
        ready = self.call("cuGraphInstantiate", graph, 0)
        self.call("cuGraphDestroy", graph)
        return ready

    def close(self) -> None:
        self.give(self._out)
        self.call("cuStreamSynchronize", self.stream)
        self.call("cuStreamDestroy", self.stream)
        self.call("cuLibraryUnload", self._library)
        self.call("cuDevicePrimaryCtxRelease", self.device)


def compiled(capability: tuple[int, int]) -> bytes:
    """The two kernels as machine code for a GPU, by NVRTC. Raises ``EngineError``: there is none."""
    nvrtc_version()  # loads the library, wherever pip has put it
    from cuda.bindings import nvrtc

    def call(function: str, *args: Any) -> Any:
        code, *values = getattr(nvrtc, function)(*args)
        if code != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise DriverError(f"{function} gave {code.name}")
        return values[0] if values else None

    program = call("nvrtcCreateProgram", SOURCE.encode(), b"kernels.cu", 0, [], [])
    call("nvrtcCompileProgram", program, 1, ["-arch=sm_{}{}".format(*capability).encode()])
    code = bytes(call("nvrtcGetCUBINSize", program))
    call("nvrtcGetCUBIN", program, code)
    call("nvrtcDestroyProgram", program)
    return code
