// What the host and the device agree on: the structures in memory, number formats, and blocks of values.
#pragma once

#ifdef __CUDACC_RTC__  // which has no headers of the standard library
using int32_t = int;
using int64_t = long long;
using uint8_t = unsigned char;
using uint16_t = unsigned short;
using uint32_t = unsigned;
using uint64_t = unsigned long long;
using uintptr_t = unsigned long long;
#else
#include <cmath>
#include <cstdint>
#include <cstring>
#endif

#ifdef __CUDACC__
#define BOTH __host__ __device__ __forceinline__
#elif defined(_MSC_VER)
#define BOTH __forceinline
#else
#define BOTH inline __attribute__((always_inline))  // into the clones for wider registers (host.cpp)
#endif

namespace edgediff {

constexpr int MAX_HISTORY = 8;
constexpr int NOT_BAD = 0x7fffffff;
constexpr unsigned BAD_OUTPUT = 1, BAD_STATE = 2, BAD_PIXELS = 4;

using Flag = int32_t;
using Weights = float[MAX_HISTORY];

// The columns of a row, which is one U-Net call: listed once, in the order of edgediff's own Row. The structure, the
// layout that Python checks and the arguments of `update` are made of this list.
#define ROW_COLUMNS(X)                                                               \
  X(float, t)     /* the timestep that the model is told */                          \
  X(float, a)     /* x' = a*x + bu*u + bc*c + sum_k w_k*h_k + d*n */                 \
  X(float, bu)                                                                       \
  X(float, bc)                                                                       \
  X(Weights, w)                                                                      \
  X(float, d)                                                                        \
  X(float, p)     /* h' = p*x + qu*u + qc*c */                                       \
  X(float, qu)                                                                       \
  X(float, qc)                                                                       \
  X(Flag, guided) /* whether there is a u */                                         \
  X(float, scale) /* the estimate x0 = x0_m*(scale*c + rest*u) + x0_x*x */           \
  X(float, x0_x)                                                                     \
  X(float, x0_m)                                                                     \
  X(float, ka)    /* alpha of the level that the row leads to; no kernel reads it */ \
  X(float, ks)    /* sigma of that level; no kernel reads it */

// The columns, and what packing adds to them.
#define ROW_FIELDS(X)               \
  ROW_COLUMNS(X)                    \
  X(float, rest)    /* 1 - scale */ \
  X(uint32_t, draw) /* the run's draws of noise so far */

// What one run changes; it lies in device memory, so that a captured graph serves the next run as well.
#define HEADER_FIELDS(X)                                                                   \
  X(int32_t, step)     /* the next row */                                                  \
  X(uint32_t, done)    /* blocks that have finished this launch */                         \
  X(int32_t, steps)    /* rows */                                                          \
  X(int32_t, depth)    /* slots of the history's ring; 0 keeps none */                     \
  X(int32_t, copies)   /* of the model's input: 2 where any row is guided */               \
  X(int32_t, bad_step) /* the first step whose state was not finite, or NOT_BAD */         \
  X(uint32_t, bad_what)                                                                    \
  X(uint32_t, threads) /* of torch's random kernel on the GPU whose noise is drawn */      \
  X(float, start)      /* factor of the first state */                                     \
  X(int32_t, drawn)    /* 0: the first state is given; k + 1: it is draw k of the seeds */ \
  X(uint32_t, first_draw) /* the draw that the rows count theirs from */                   \
  X(uint32_t, rounds)  /* counters that each of the threads moves on by in a draw */       \
  X(uint64_t, noise)   /* address of float32 noise, batch*size for each draw; 0 draws it here */

#define DECLARE(type, name) type name;
struct Row {
  ROW_FIELDS(DECLARE)
};
struct Header {
  HEADER_FIELDS(DECLARE)
};

enum class Type : int { f32, f16, i64 };

// Addresses and geometry: fixed while a captured graph lives. A kernel takes it by value.
#define STATE_FIELDS(X)                                                                              \
  X(Header*, header)                                                                                 \
  X(const Row*, rows)                                                                                \
  X(const uint64_t*, seeds)  /* one an image */                                                      \
  X(float*, x)               /* (batch, size) */                                                     \
  X(float*, history)         /* (depth, batch, size), a ring: row k's h' lies in slot k % depth */   \
  X(float*, x0)              /* (batch, size), or null */                                            \
  X(const void*, output)     /* of the model: u then c, or c alone */                                \
  X(void*, input)            /* of the model: copies of (batch, stride); `size` of each the state's */ \
  X(void*, timestep)         /* copies*batch values */                                               \
  X(int64_t, size)           /* values of one image */                                               \
  X(int64_t, stride)                                                                                 \
  X(int32_t, batch)                                                                                  \
  X(Type, input_type)                                                                                \
  X(Type, output_type)                                                                               \
  X(Type, timestep_type)

struct State {
  STATE_FIELDS(DECLARE)
};
#undef DECLARE

struct Half { uint16_t bits; };

BOTH float from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
BOTH uint32_t to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

BOTH float widen(float v) { return v; }
BOTH float widen(Half v) {
#ifdef __CUDA_ARCH__
  float wide;  // as cuda_fp16.h does, which NVRTC has not by itself
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits));
  return wide;
#else
  const uint32_t sign = uint32_t(v.bits & 0x8000) << 16, rest = uint32_t(v.bits & 0x7fff) << 13;
  if (rest >= 0x0f800000) return from_bits(sign | (rest + 0x70000000));  // infinity, NaN
  return from_bits(sign | to_bits(from_bits(rest) * 0x1p112f));          // the product rebiases, subnormals too
#endif
}

template <class T> BOTH T narrow(float v);
template <> BOTH float narrow<float>(float v) { return v; }
template <> BOTH Half narrow<Half>(float v) {
#ifdef __CUDA_ARCH__
  Half half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half.bits) : "f"(v));
  return half;
#else
  const uint32_t bits = to_bits(v), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return {uint16_t(sign | 0x7e00 | (rest >> 13 & 0x3ff))};
  if (rest >= 0x477ff000) return {uint16_t(sign | 0x7c00)};  // 65520 and above round to infinity
  if (rest < 0x38800000)  // subnormal: adding 0.5 leaves the rounded value in the last bits
    return {uint16_t(sign | (to_bits(from_bits(rest) + 0.5f) - 0x3f000000))};
  return {uint16_t(sign | ((rest + 0xfff + (rest >> 13 & 1) - 0x38000000) >> 13))};
#endif
}

// N neighbouring values: 1 or 4 of a GPU's thread (one wide load), many on the host (vectorised by the compiler).
template <int N> struct Pack { float v[N]; };

#ifdef __CUDA_ARCH__
// The word of a pack, and its store, spelt out: left to itself the compiler makes several narrow stores.
template <int BYTES> struct Wide;
template <> struct Wide<2> { using Word = unsigned short; };
template <> struct Wide<4> { using Word = unsigned; };
template <> struct Wide<8> { using Word = uint2; };
template <> struct Wide<16> { using Word = uint4; };

template <int N, class T> BOTH Pack<N> load(const T* from) {
  using Word = typename Wide<sizeof(T) * N>::Word;
  const Word word = *reinterpret_cast<const Word*>(from);
  T raw[N];
  memcpy(raw, &word, sizeof word);
  Pack<N> out;
#pragma unroll
  for (int i = 0; i < N; ++i) out.v[i] = widen(raw[i]);
  return out;
}
template <int N, class T> BOTH void store(T* to, const Pack<N>& values) {
  using Word = typename Wide<sizeof(T) * N>::Word;
  T raw[N];
#pragma unroll
  for (int i = 0; i < N; ++i) raw[i] = narrow<T>(values.v[i]);
  Word word;
  memcpy(&word, raw, sizeof word);
  __stcg(reinterpret_cast<Word*>(to), word);  // where plain stores stay, too: in the second-level cache
}
#else
template <int N, class T> BOTH Pack<N> load(const T* from) {
  Pack<N> out;
  for (int i = 0; i < N; ++i) out.v[i] = widen(from[i]);
  return out;
}
template <int N, class T> BOTH void store(T* to, const Pack<N>& values) {
  for (int i = 0; i < N; ++i) to[i] = narrow<T>(values.v[i]);
}
#endif

// A product and a sum, each rounded, as NumPy has them: never one fused operation.
BOTH float multiply(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
BOTH float sum(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

template <int N> BOTH Pack<N> scaled(float k, const Pack<N>& in) {
  Pack<N> out;
  for (int i = 0; i < N; ++i) out.v[i] = multiply(k, in.v[i]);
  return out;
}
template <int N> BOTH void add(Pack<N>& out, float k, const Pack<N>& in) {
  for (int i = 0; i < N; ++i) out.v[i] = sum(out.v[i], multiply(k, in.v[i]));
}
template <int N> BOTH bool finite(const Pack<N>& in) {
  uint32_t bad = 0;
  for (int i = 0; i < N; ++i) bad |= uint32_t((to_bits(in.v[i]) & 0x7f800000) == 0x7f800000);
  return bad == 0;
}

}  // namespace edgediff
