// How a CUDA launch covers the values. Plain functions of a thread's place, so that the host can walk the same grid,
// which Python lays out (edgediff/device/geometry.py).
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
  const Row* row = s.rows + h.step;
  return cover<N>(s, p, [&](int image, int64_t at) {
    const Row r = *row;  // anew for each pack, so that what is no longer needed of it frees its register
    return step<N, In, Out>(s, h, r, row->w, image, at);
  });
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

}  // namespace edgediff
