// torch.Generator("cuda")'s normal noise: Philox4x32-10 (Salmon et al. 2011) and cuRAND's Box-Muller, by position.
#pragma once

#include "types.h"

namespace edgediff {

struct Words { uint32_t w[4]; };

BOTH Words philox(uint64_t counter, uint32_t thread, uint64_t key) {
  uint32_t a = uint32_t(counter), b = uint32_t(counter >> 32), c = thread, d = 0;
  uint32_t low = uint32_t(key), high = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p = uint64_t(a) * 0xD2511F53u, q = uint64_t(c) * 0xCD9E8D57u;
    a = uint32_t(q >> 32) ^ b ^ low;
    b = uint32_t(q);
    c = uint32_t(p >> 32) ^ d ^ high;
    d = uint32_t(p);
    low += 0x9E3779B9u;
    high += 0xBB67AE85u;
  }
  return {{a, b, c, d}};
}

// Value `at` of the draw'th `size` values of a seed. torch gives each of `threads` threads a counter of its own; thread
// i makes values i, i + threads, i + 2*threads, i + 3*threads of every round of four.
BOTH float normal(uint64_t seed, uint64_t draw, int64_t at, int64_t size, uint32_t threads) {
  const uint64_t rounds = uint64_t(size - 1) / (4ull * threads) + 1;
  const bool first = at < int64_t(threads);  // most latents: no division
  const uint32_t lane = first ? uint32_t(at) : uint32_t(uint64_t(at) % threads);
  const uint64_t turn = first ? 0 : uint64_t(at) / threads;
  const Words raw = philox(draw * rounds + turn / 4, lane, seed);
  const bool second = turn & 2, cosine = turn & 1;
  const float x = float(second ? raw.w[2] : raw.w[0]), y = float(second ? raw.w[3] : raw.w[1]);
  const float u = fmaf(x, 0x1p-32f, 0x1p-33f);
  const float angle = fmaf(y, 1.46291807926715968105e-9f, 0.731459039633579840525e-9f);  // 2 pi 2^-32, and half of it
  const float radius = sqrtf(multiply(-2.0f, logf(u)));
#ifdef __CUDA_ARCH__
  float s, c;
  __sincosf(angle, &s, &c);  // as torch: fast, good to 1e-6
  return multiply(radius, cosine ? c : s);
#else
  return radius * (cosine ? cosf(angle) : sinf(angle));
#endif
}

}  // namespace edgediff
