// How a CUDA launch covers the values. Plain functions of a thread's place, so that the host can walk the same grid.
#pragma once

#include "update.h"

namespace edgediff {

constexpr int BLOCK = 256;

struct Place {
  uint32_t block_x, block_y, grid_x, grid_y, thread;
};

// Neighbouring threads take neighbouring packs; images go along y.
template <int N, class Body> BOTH unsigned cover(const State& s, const Place& p, Body body) {
  unsigned bad = 0;
  for (int64_t image = p.block_y; image < s.batch; image += p.grid_y)
    for (int64_t k = int64_t(p.block_x) * BLOCK + p.thread; k < s.size / N; k += int64_t(p.grid_x) * BLOCK)
      bad |= body(int(image), k * N);
  return bad;
}

template <int N, class In> BOTH void begin_thread(const State& s, const Place& p) {
  const Header h = *s.header;
  cover<N>(s, p, [&](int image, int64_t at) {
    begin<N, In>(s, h, image, at);
    return 0u;
  });
}

template <int N, class In, class Out> BOTH unsigned step_thread(const State& s, const Place& p) {
  const Header h = *s.header;
  if (h.step >= h.steps) return 0;  // replayed too often
  const Row r = s.rows[h.step];
  const float* w = s.rows[h.step].w;
  return cover<N>(s, p, [&](int image, int64_t at) { return step<N, In, Out>(s, h, r, w, image, at); });
}

struct Grid {
  uint32_t x, y;
  int pack;
};

// Enough blocks to fill the GPU, walked in strides beyond that. Small latents take one value a thread: there latency
// counts, not bandwidth.
inline Grid grid_of(const State& s, int multiprocessors, bool aligned) {
  const int64_t fill = int64_t(multiprocessors) * 8;  // blocks of 256 threads on 2,048-thread multiprocessors
  const bool wide = aligned && s.size % 4 == 0 && s.stride % 4 == 0 && s.batch * s.size >= fill * BLOCK;
  const int pack = wide ? 4 : 1;
  const int64_t blocks = (s.size / pack + BLOCK - 1) / BLOCK;
  const int64_t x = blocks < fill ? blocks : fill;
  const int64_t rows = fill / x > 0 ? fill / x : 1;
  const int64_t y = s.batch < rows ? s.batch : rows;
  return {uint32_t(x), uint32_t(y), pack};
}

// The first bad step and what was bad in it. On the device blocks race, hence the atomics there.
BOTH void report(Header* header, int step, unsigned bad) {
#ifdef __CUDA_ARCH__
  if (atomicMin(&header->bad_step, step) >= step) atomicOr(&header->bad_what, bad);
#else
  if (header->bad_step < step) return;
  header->bad_step = step;
  header->bad_what |= bad;
#endif
}

// Calls f(In(), Out()) with the types of the model's input and output.
template <class F> auto with_types(Type input, Type output, F f) {
  const auto second = [&](auto in) {
    if (output == Type::f16) return f(in, Half());
    if (output == Type::bf16) return f(in, Bfloat());
    return f(in, float());
  };
  if (input == Type::f16) return second(Half());
  if (input == Type::bf16) return second(Bfloat());
  return second(float());
}

}  // namespace edgediff
