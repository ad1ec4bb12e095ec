#include <cuda_runtime.h>

#include "device.h"
#include "grid.h"

namespace edgediff {
namespace {

__device__ Place place() { return {blockIdx.x, blockIdx.y, gridDim.x, gridDim.y, threadIdx.x}; }

// `begun` writes what no other thread of this launch reads.
template <int N, class In> __global__ void __launch_bounds__(BLOCK) begin_kernel(const State s) {
  const Place p = place();
  begin_thread<N, In>(s, p);
  if (p.block_x == 0 && p.block_y == 0) begun(s, threadIdx.x, BLOCK);
}

template <int N, class In, class Out> __global__ void __launch_bounds__(BLOCK, 4) step_kernel(const State s) {
  const int at = s.header->step;
  const unsigned bad = step_thread<N, In, Out>(s, place());
  if (bad) report(s.header, at, bad);
  __shared__ bool last;
  __syncthreads();  // every thread of the block has read the step
  if (threadIdx.x == 0) last = atomicAdd(&s.header->done, 1) == gridDim.x * gridDim.y - 1;
  __syncthreads();
  if (last) finished(s, at, threadIdx.x, BLOCK);
}

template <int N, class In>
__global__ void __launch_bounds__(BLOCK) unscale_kernel(const float* x, In* z, int64_t count, float scale, float shift) {
  for (int64_t k = blockIdx.x * int64_t(BLOCK) + threadIdx.x; k < count; k += int64_t(gridDim.x) * BLOCK)
    unscale<N>(x, z, k, scale, shift);
}

template <class Out>
__global__ void __launch_bounds__(BLOCK)
    pixel_kernel(const Out* decoded, uint8_t* pixels, int64_t count, int64_t area, Header* header) {
  unsigned bad = 0;
  for (int64_t k = blockIdx.x * int64_t(BLOCK) + threadIdx.x; k < count; k += int64_t(gridDim.x) * BLOCK)
    bad |= pixel(decoded, pixels, area, k);
  if (bad) atomicOr(&header->bad_what, bad);
}

unsigned blocks(int64_t count) {
  const int64_t needed = (count + BLOCK - 1) / BLOCK;
  return unsigned(needed < 65536 ? needed : 65536);
}

// An error that was returned here must not show up again after the next launch.
int seen(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

cudaStream_t handle(uint64_t stream) { return reinterpret_cast<cudaStream_t>(static_cast<uintptr_t>(stream)); }

}  // namespace

namespace device {

int facts(Facts& out) {
  cudaRuntimeGetVersion(&out.runtime);
  cudaDriverGetVersion(&out.driver);
  const cudaError_t error = cudaGetDeviceCount(&out.count);
  out.outdated = error == cudaErrorInsufficientDriver;
  return seen(error);
}

int multiprocessors(int device, int& out) {
  return seen(cudaDeviceGetAttribute(&out, cudaDevAttrMultiProcessorCount, device));
}

int reachable(int device, uint64_t address, bool& out, std::string& what) {
  cudaPointerAttributes found{};
  out = false;
  cudaError_t error = cudaSetDevice(device);  // asking makes a context on the current device, whichever that is
  if (error == cudaSuccess)
    error = cudaPointerGetAttributes(&found, reinterpret_cast<void*>(static_cast<uintptr_t>(address)));
  if (error != cudaSuccess) return seen(error);
  if (found.type == cudaMemoryTypeUnregistered) what = "plain host memory";
  else if (found.type == cudaMemoryTypeDevice && found.device != device)
    what = "memory of device " + std::to_string(found.device);
  else out = found.devicePointer != nullptr;
  if (!out && what.empty()) what = "host memory that the device cannot reach";
  return cudaSuccess;
}

int stream_device(int device, uint64_t stream, int& out) {
  out = -1;
  const cudaError_t error = cudaSetDevice(device);
  if (error != cudaSuccess) return seen(error);
#if CUDART_VERSION >= 12080
  const cudaError_t asked = cudaStreamGetDevice(handle(stream), &out);
  if (asked == cudaErrorCallRequiresNewerDriver) out = -1;  // one of CUDA 12.0 to 12.7
  return seen(asked) == cudaErrorCallRequiresNewerDriver ? cudaSuccess : asked;
#else
  return cudaSuccess;
#endif
}

int begin(const State& s, int device, int multiprocessors, bool aligned, uint64_t stream) {
  const cudaError_t error = cudaSetDevice(device);
  if (error != cudaSuccess) return seen(error);
  const Grid grid = grid_of(s, multiprocessors, aligned);
  const dim3 shape(grid.x, grid.y);
  with_types(s.input_type, s.output_type, [&](auto in, auto) {
    using In = decltype(in);
    if (grid.pack == 4) begin_kernel<4, In><<<shape, BLOCK, 0, handle(stream)>>>(s);
    else begin_kernel<1, In><<<shape, BLOCK, 0, handle(stream)>>>(s);
  });
  return cudaGetLastError();
}

int step(const State& s, int device, int multiprocessors, bool aligned, uint64_t stream) {
  const cudaError_t error = cudaSetDevice(device);
  if (error != cudaSuccess) return seen(error);
  const Grid grid = grid_of(s, multiprocessors, aligned);
  const dim3 shape(grid.x, grid.y);
  with_types(s.input_type, s.output_type, [&](auto in, auto out) {
    using In = decltype(in);
    using Out = decltype(out);
    if (grid.pack == 4) step_kernel<4, In, Out><<<shape, BLOCK, 0, handle(stream)>>>(s);
    else step_kernel<1, In, Out><<<shape, BLOCK, 0, handle(stream)>>>(s);
  });
  return cudaGetLastError();
}

int unscale(const float* x, void* z, Type type, int64_t count, float scale, float shift, int device, uint64_t stream) {
  const cudaError_t error = cudaSetDevice(device);
  if (error != cudaSuccess) return seen(error);
  with_types(type, Type::f32, [&](auto in, auto) {
    using In = decltype(in);
    unscale_kernel<1, In><<<blocks(count), BLOCK, 0, handle(stream)>>>(x, static_cast<In*>(z), count, scale, shift);
  });
  return cudaGetLastError();
}

int pixels(const void* decoded, Type type, uint8_t* out, int64_t images, int64_t area, Header* header, int device,
           uint64_t stream) {
  const cudaError_t error = cudaSetDevice(device);
  if (error != cudaSuccess) return seen(error);
  with_types(Type::f32, type, [&](auto, auto given) {
    using Out = decltype(given);
    pixel_kernel<Out><<<blocks(images * area), BLOCK, 0, handle(stream)>>>(static_cast<const Out*>(decoded), out,
                                                                           images * area, area, header);
  });
  return cudaGetLastError();
}

std::string describe(int error) {
  const auto code = static_cast<cudaError_t>(error);
  return std::string(cudaGetErrorName(code)) + ": " + cudaGetErrorString(code);
}

}  // namespace device
}  // namespace edgediff
