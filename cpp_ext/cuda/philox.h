// torch.Generator("cuda")'s normal noise: Philox4x32-10 (Salmon et al. 2011) and cuRAND's Box-Muller, by position.
#pragma once

#include "types.h"

namespace edgediff {

// The counters of N neighbouring threads and their common key. Rounds go outside, lanes inside: they share the key's
// additions and, in the first rounds, what their counters have in common.
template <int N> struct Philox {
  uint32_t a[N], b[N], c[N], d[N], low, high;

  BOTH Philox(uint64_t counter, uint32_t thread, uint64_t key) : low(uint32_t(key)), high(uint32_t(key >> 32)) {
    for (int i = 0; i < N; ++i) a[i] = uint32_t(counter), b[i] = uint32_t(counter >> 32), c[i] = thread + i, d[i] = 0;
  }

  BOTH static uint64_t first(uint32_t a) { return uint64_t(a) * 0xD2511F53; }
  BOTH static uint64_t second(uint32_t c) { return uint64_t(c) * 0xCD9E8D57; }

  BOTH void round() {
    for (int i = 0; i < N; ++i) {
      const uint64_t p = first(a[i]), q = second(c[i]);
      a[i] = uint32_t(q >> 32) ^ b[i] ^ low;
      b[i] = uint32_t(q);
      c[i] = uint32_t(p >> 32) ^ d[i] ^ high;
      d[i] = uint32_t(p);
    }
    low += 0x9E3779B9;
    high += 0xBB67AE85;
  }

  // The last round, of whose four words a normal value takes the first pair or the second.
  BOTH void last(bool second_pair, uint32_t (&x)[N], uint32_t (&y)[N]) const {
    if (second_pair) {
      for (int i = 0; i < N; ++i) {
        const uint64_t p = first(a[i]);
        x[i] = uint32_t(p >> 32) ^ d[i] ^ high, y[i] = uint32_t(p);
      }
    } else {
      for (int i = 0; i < N; ++i) {
        const uint64_t q = second(c[i]);
        x[i] = uint32_t(q >> 32) ^ b[i] ^ low, y[i] = uint32_t(q);
      }
    }
  }
};

// Box-Muller of N pairs of words.
template <int N> BOTH Pack<N> box_muller(const uint32_t (&x)[N], const uint32_t (&y)[N], bool cosine) {
  float radius[N], angle[N];
  for (int i = 0; i < N; ++i) {
    const float u = fmaf(float(x[i]), 0x1p-32f, 0x1p-33f);
    angle[i] = fmaf(float(y[i]), 1.46291807926715968105e-9f, 0.731459039633579840525e-9f);  // 2 pi 2^-32, and half
    radius[i] = sqrtf(multiply(-2.0f, logf(u)));
  }
  Pack<N> out;
#ifdef __CUDA_ARCH__
  if (cosine) {  // as torch: fast, good to 1e-6
    for (int i = 0; i < N; ++i) out.v[i] = multiply(radius[i], __cosf(angle[i]));
  } else {
    for (int i = 0; i < N; ++i) out.v[i] = multiply(radius[i], __sinf(angle[i]));
  }
#else
  for (int i = 0; i < N; ++i) out.v[i] = radius[i] * (cosine ? cosf(angle[i]) : sinf(angle[i]));
#endif
  return out;
}

// N neighbouring values of the draw'th values of a seed, from value `at` on. torch gives each of `threads` threads a
// counter of its own, which moves on by `rounds` in a draw; thread i makes values i, i + threads, i + 2*threads,
// i + 3*threads of every round of four. On the device four neighbours lie in one of these turns: torch's threads come
// in blocks of 256, and a pack begins at a multiple of four.
template <int N> BOTH Pack<N> normals(uint64_t seed, uint64_t draw, int64_t at, uint32_t threads, uint32_t rounds) {
  uint32_t lane = uint32_t(at), turn = 0;  // an image has at most 2^31 values
  if (lane >= threads) {                   // most latents: no division
    turn = lane / threads;
    lane -= turn * threads;
  }
#ifndef __CUDA_ARCH__
  if (N > 1 && lane + uint64_t(N) > threads) {  // into the next turn
    Pack<N> out;
    for (int i = 0; i < N; ++i) out.v[i] = normals<1>(seed, draw, at + i, threads, rounds).v[0];
    return out;
  }
#endif
  Philox<N> words(draw * rounds + turn / 4, lane, seed);
  words.round();
#ifdef __CUDA_ARCH__
#pragma unroll 4  // unrolled whole, every round's key takes a register
#endif
  for (int round = 1; round < 9; ++round) words.round();
  uint32_t x[N], y[N];
  words.last(turn & 2, x, y);
  return box_muller<N>(x, y, turn & 1);
}

}  // namespace edgediff
