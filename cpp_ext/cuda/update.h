// The update: one row of the table on N neighbouring values. Compiled for the host and for the device.
#pragma once

#include "philox.h"
#include "types.h"

namespace edgediff {

template <int N, class In> BOTH void feed(const State& s, int copies, int image, int64_t at, const Pack<N>& x) {
  In* input = static_cast<In*>(s.input) + image * s.stride + at;
  for (int k = 0; k < copies; ++k) store<N>(input + int64_t(k) * s.batch * s.stride, x);
}

// A draw's noise of one image. The header is read where it is: what only this needs keeps no registers before.
template <int N> BOTH Pack<N> noise(const State& s, uint32_t draw, int image, int64_t at) {
  const Header& h = *s.header;
  if (h.noise) {
    const float* drawn = reinterpret_cast<const float*>(static_cast<uintptr_t>(h.noise));
    return load<N>(drawn + (int64_t(draw) * s.batch + image) * s.size + at);
  }
  return normals<N>(s.seeds[image], draw, at, h.threads, h.rounds);
}

// h' of a row.
template <int N> BOTH Pack<N> remember(const Row& r, const Pack<N>& x, bool guided, const Pack<N>& u, const Pack<N>& c) {
  Pack<N> out = scaled(r.qc, c);
  if (r.p != 0) add(out, r.p, x);
  if (guided) add(out, r.qu, u);
  return out;
}

// The first state and the first input of the model.
template <int N, class In> BOTH void begin(const State& s, const Header& h, int image, int64_t at) {
  float* place = s.x + image * s.size + at;
  Pack<N> x = h.drawn ? noise<N>(s, uint32_t(h.drawn - 1), image, at) : load<N>(place);
  x = scaled(h.start, x);
  store<N>(place, x);
  feed<N, In>(s, h.copies, image, at, x);
}

// One step; says what was not finite. In every sum the order is that of the NumPy reference. The weights come apart from
// the row, so that a GPU keeps the row in registers.
template <int N, class In, class Out>
BOTH unsigned step(const State& s, const Header& h, const Row& r, const float* w, int image, int64_t at) {
  const int64_t total = s.batch * s.size, here = image * s.size + at;
  const bool guided = r.guided != 0;
  const Out* output = static_cast<const Out*>(s.output);
  // First, while nothing else takes registers.
  const Pack<N> n = r.d != 0 ? noise<N>(s, s.header->first_draw + r.draw, image, at) : Pack<N>{};
  const Pack<N> x = load<N>(s.x + here);
  const Pack<N> c = load<N>(output + (guided ? total : 0) + here);
  const Pack<N> u = guided ? load<N>(output + here) : Pack<N>{};
  Pack<N> next = scaled(r.a, x);
  add(next, r.bc, c);
  if (guided) add(next, r.bu, u);
  if (h.depth) {
    int slot = h.step % h.depth;
    float* pushed = s.history + slot * total + here;  // where the oldest lies, read before it is replaced
    for (int k = 0; k < h.depth; ++k) {
      slot = (slot == 0 ? h.depth : slot) - 1;
      if (w[k] != 0) add(next, w[k], load<N>(s.history + slot * total + here));
    }
    store<N>(pushed, remember(r, x, guided, u, c));
  }
  if (r.d != 0) add(next, r.d, n);
  if (s.x0) {
    Pack<N> m = c;
    if (guided) {
      m = scaled(r.scale, c);
      add(m, r.rest, u);
    }
    Pack<N> x0 = scaled(r.x0_m, m);
    if (r.x0_x != 0) add(x0, r.x0_x, x);
    store<N>(s.x0 + here, x0);
  }
  store<N>(s.x + here, next);
  feed<N, In>(s, h.copies, image, at, next);
  if (finite(next)) return 0;
  return finite(c) && finite(u) ? BAD_STATE : BAD_OUTPUT;
}

// Writes the next timestep `first`, `first + stride`, ... : the threads of one block share it, the host takes all.
BOTH void tell(const State& s, int copies, float t, int first, int stride) {
  for (int k = first; k < copies * s.batch; k += stride) {
    if (s.timestep_type == Type::f32) static_cast<float*>(s.timestep)[k] = t;
    if (s.timestep_type == Type::f16) static_cast<Half*>(s.timestep)[k] = narrow<Half>(t);
    if (s.timestep_type == Type::i64) static_cast<int64_t*>(s.timestep)[k] = int64_t(t);
  }
}

// What the last block of a launch does; `at` is the step that it ran.
BOTH void begun(const State& s, int first = 0, int stride = 1) {
  if (first == 0) s.header->step = 0, s.header->done = 0;
  tell(s, s.header->copies, s.rows[0].t, first, stride);
}
BOTH void finished(const State& s, int at, int first = 0, int stride = 1) {
  Header& h = *s.header;
  if (first == 0) {
    h.done = 0;
    if (at < h.steps) h.step = at + 1;
  }
  if (at + 1 < h.steps) tell(s, h.copies, s.rows[at + 1].t, first, stride);
}

// z = x/scale + shift, what the VAE decoder takes.
template <int N, class In> BOTH void unscale(const float* x, In* z, int64_t at, float scale, float shift) {
  Pack<N> v = load<N>(x + at);
  for (int i = 0; i < N; ++i) {
#ifdef __CUDA_ARCH__
    v.v[i] = sum(__fdiv_rn(v.v[i], scale), shift);
#else
    v.v[i] = v.v[i] / scale + shift;
#endif
  }
  store<N>(z + at, v);
}

// Decoder output (batch, 3, area) in [-1, 1] -> uint8 (batch, area, 3), rounded to nearest even.
template <class Out> BOTH unsigned pixel(const Out* decoded, uint8_t* pixels, int64_t area, int64_t at) {
  const int64_t image = at / area, place = at % area;
  unsigned bad = 0;
  for (int channel = 0; channel < 3; ++channel) {
    const float v = widen(decoded[(image * 3 + channel) * area + place]);
    const float level = rintf(sum(multiply(v, 127.5f), 127.5f));
    pixels[3 * at + channel] = uint8_t(fminf(fmaxf(level, 0.0f), 255.0f));
    if (!finite(Pack<1>{{v}})) bad = BAD_PIXELS;
  }
  return bad;
}

}  // namespace edgediff
