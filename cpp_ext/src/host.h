// The CPU twin of the kernels: the same arithmetic over host memory, in blocks that the compiler vectorises.
#pragma once

#include "types.h"

namespace edgediff::host {

void begin(const State& s);
void step(const State& s);
void unscale(const float* x, void* z, Type type, int64_t count, float scale, float shift);
unsigned pixels(const void* decoded, Type type, uint8_t* out, int64_t images, int64_t area);
void normals(uint64_t seed, uint64_t draw, float* out, int64_t size, uint32_t threads);

// Walks the grid of a CUDA launch, thread by thread: the device's own code but for the hardware.
struct Grid {
  uint32_t x, y;
  int pack;  // 1 or 4
};
void begin_as_device(const State& s, const Grid& grid);
void step_as_device(const State& s, const Grid& grid);

// One row on arrays apart: x' and h' (where wanted) of `count` values.
struct Row1 {
  const float *x, *u, *c, *n;
  const float* const* history;
  float *next, *pushed;
};
void update(const Row& r, int weights, const Row1& arrays, int64_t count);

}  // namespace edgediff::host
