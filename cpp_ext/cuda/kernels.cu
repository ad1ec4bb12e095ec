// The CUDA kernels: one entry a pack and type, which edgediff/device/cuda/kernels.py launches. Compiled as they stand by
// NVRTC or by nvcc; nothing here runs on the host.
#include "grid.h"

namespace edgediff {

#ifdef EDGEDIFF_STATE_BYTES  // as Python lays the structures out
static_assert(sizeof(State) == EDGEDIFF_STATE_BYTES && sizeof(Row) == EDGEDIFF_ROW_BYTES &&
              sizeof(Header) == EDGEDIFF_HEADER_BYTES, "edgediff lays out its structures otherwise");
#endif

__device__ Place place() { return {blockIdx.x, blockIdx.y, gridDim.x, gridDim.y, threadIdx.x}; }

// `begun` writes what no other thread of this launch reads.
template <int N, class In> __device__ __forceinline__ void begin_block(const State& s) {
  const Place p = place();
  begin_thread<N, In>(s, p);
  if (p.block_x == 0 && p.block_y == 0) begun(s, threadIdx.x, BLOCK);
}

template <int N, class In, class Out> __device__ __forceinline__ void step_block(const State& s) {
  const int at = s.header->step;
  const unsigned bad = step_thread<N, In, Out>(s, place());
  if (bad) report(s.header, at, bad);
  __shared__ bool last;
  __syncthreads();  // every thread of the block has read the step
  if (threadIdx.x == 0) {
    __threadfence();  // what the block has written comes before its count
    last = atomicAdd(&s.header->done, 1) == gridDim.x * gridDim.y - 1;
  }
  __syncthreads();
  if (last) finished(s, at, threadIdx.x, BLOCK);
}

// body(k) for this thread's share of 0 .. count.
template <class Body> __device__ __forceinline__ void each(int64_t count, Body body) {
  for (int64_t k = blockIdx.x * int64_t(BLOCK) + threadIdx.x; k < count; k += int64_t(gridDim.x) * BLOCK) body(k);
}

template <class In> __device__ __forceinline__ void unscale_all(const float* x, In* z, int64_t count, float scale, float shift) {
  each(count, [&](int64_t k) { unscale<1>(x, z, k, scale, shift); });
}

template <class Out>
__device__ __forceinline__ void all_pixels(const Out* decoded, uint8_t* pixels, int64_t count, int64_t area, Header* header) {
  unsigned bad = 0;
  each(count, [&](int64_t k) { bad |= pixel(decoded, pixels, area, k); });
  if (bad) atomicOr(&header->bad_what, bad);
}

}  // namespace edgediff

using namespace edgediff;
#define KERNEL extern "C" __global__ void __launch_bounds__
#define STEP(N, in, In, out, Out) \
  KERNEL(BLOCK, 4) step_##N##_##in##_##out(const State s) { step_block<N, In, Out>(s); }
#define BEGIN(N, in, In)                                                  \
  KERNEL(BLOCK) begin_##N##_##in(const State s) { begin_block<N, In>(s); } \
  STEP(N, in, In, f32, float)                                             \
  STEP(N, in, In, f16, Half)
#define ENDS(type, T)                                                                                       \
  BEGIN(1, type, T)                                                                                         \
  BEGIN(4, type, T)                                                                                         \
  KERNEL(BLOCK) unscale_##type(const float* x, T* z, int64_t count, float scale, float shift) {             \
    unscale_all(x, z, count, scale, shift);                                                                 \
  }                                                                                                         \
  KERNEL(BLOCK) pixels_##type(const T* decoded, uint8_t* pixels, int64_t count, int64_t area, Header* header) { \
    all_pixels(decoded, pixels, count, area, header);                                                       \
  }

ENDS(f32, float)
ENDS(f16, Half)
