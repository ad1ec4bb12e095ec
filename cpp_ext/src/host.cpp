#include "host.h"

#include <algorithm>
#include <system_error>
#include <thread>
#include <vector>

#include "grid.h"

// Compiled for wider registers as well, and chosen at load. Without fused operations the results are the same.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif

namespace edgediff::host {
namespace {

// Calls f(In(), Out()) with the types of the model's input and output.
template <class F> auto with_types(Type input, Type output, F f) {
  const auto second = [&](auto in) { return output == Type::f16 ? f(in, Half()) : f(in, float()); };
  return input == Type::f16 ? second(Half()) : second(float());
}

constexpr int WIDE = 64;            // values a block: in registers and first-level cache
constexpr int64_t SHARE = 1 << 19;  // values that are worth a thread of their own (its start costs some 20 us)

// Calls body(first, last) on shares of 0 .. count, on several threads where it pays; ORs what they return.
template <class Body> unsigned share(int64_t count, Body body) {
  static const int64_t most = std::max(1u, std::thread::hardware_concurrency());  // the system reads a file for it
  const int64_t workers = std::clamp<int64_t>(count / SHARE, 1, most);
  if (workers == 1) return body(int64_t(0), count);
  const int64_t each = ((count + workers - 1) / workers + WIDE - 1) / WIDE * WIDE;
  std::vector<unsigned> found(workers);
  std::vector<std::thread> threads;
  const auto work = [&](int64_t k) { found[k] = body(std::min(k * each, count), std::min((k + 1) * each, count)); };
  int64_t next = 1;
  try {
    for (; next < workers; ++next) threads.emplace_back(work, next);
  } catch (const std::system_error&) {  // no thread to be had: this one does the rest
  }
  for (; next < workers; ++next) work(next);
  work(0);
  for (auto& t : threads) t.join();
  unsigned all = 0;
  for (unsigned f : found) all |= f;
  return all;
}

// body(image, at) for packs: an integral constant of the width, then the single values of each image's end.
template <class Body> unsigned over(const State& s, Body body) {
  return share(s.batch * s.size, [&](int64_t first, int64_t last) {
    unsigned bad = 0;
    while (first < last) {
      const int64_t image = first / s.size, at = first % s.size, end = std::min(s.size, at + last - first);
      int64_t k = at;
      for (; k + WIDE <= end; k += WIDE) bad |= body(std::integral_constant<int, WIDE>(), int(image), k);
      for (; k < end; ++k) bad |= body(std::integral_constant<int, 1>(), int(image), k);
      first += end - at;
    }
    return bad;
  });
}

}  // namespace

void begin(const State& s) {
  const Header h = *s.header;
  with_types(s.input_type, s.output_type, [&](auto in, auto) {
    over(s, [&](auto width, int image, int64_t at) {
      edgediff::begin<decltype(width)::value, decltype(in)>(s, h, image, at);
      return 0u;
    });
  });
  begun(s);
}

void step(const State& s) {
  const Header h = *s.header;
  if (h.step < h.steps) {
    const Row r = s.rows[h.step];
    const unsigned bad = with_types(s.input_type, s.output_type, [&](auto in, auto out) {
      return over(s, [&](auto width, int image, int64_t at) {
        return edgediff::step<decltype(width)::value, decltype(in), decltype(out)>(s, h, r, r.w, image, at);
      });
    });
    if (bad) report(s.header, h.step, bad);
  }
  finished(s, h.step);
}

void unscale(const float* x, void* z, Type type, int64_t count, float scale, float shift) {
  with_types(type, Type::f32, [&](auto in, auto) {
    auto* out = static_cast<decltype(in)*>(z);
    share(count, [&](int64_t first, int64_t last) {
      for (; first + WIDE <= last; first += WIDE) edgediff::unscale<WIDE>(x, out, first, scale, shift);
      for (; first < last; ++first) edgediff::unscale<1>(x, out, first, scale, shift);
      return 0u;
    });
  });
}

unsigned pixels(const void* decoded, Type type, uint8_t* out, int64_t images, int64_t area) {
  return with_types(Type::f32, type, [&](auto, auto given) {
    const auto* from = static_cast<const decltype(given)*>(decoded);
    return share(images * area, [&](int64_t first, int64_t last) {
      unsigned bad = 0;
      for (; first < last; ++first) bad |= edgediff::pixel(from, out, area, first);
      return bad;
    });
  });
}

void normals(uint64_t seed, uint64_t draw, float* out, int64_t size, uint32_t threads) {
  const auto rounds = uint32_t((size - 1) / (4 * int64_t(threads)) + 1);
  share(size, [&](int64_t first, int64_t last) {
    for (; first + WIDE <= last; first += WIDE)
      store<WIDE>(out + first, edgediff::normals<WIDE>(seed, draw, first, threads, rounds));
    for (; first < last; ++first) store<1>(out + first, edgediff::normals<1>(seed, draw, first, threads, rounds));
    return 0u;
  });
}

namespace {

template <class Thread> void walk(const Grid& grid, Thread thread) {
  for (uint32_t y = 0; y < grid.y; ++y)
    for (uint32_t x = 0; x < grid.x; ++x)
      for (uint32_t t = 0; t < BLOCK; ++t) thread(Place{x, y, grid.x, grid.y, t});
}

}  // namespace

void begin_as_device(const State& s, const Grid& grid) {
  with_types(s.input_type, s.output_type, [&](auto in, auto) {
    using In = decltype(in);
    walk(grid, [&](const Place& p) { grid.pack == 4 ? begin_thread<4, In>(s, p) : begin_thread<1, In>(s, p); });
  });
  begun(s);
}

void step_as_device(const State& s, const Grid& grid) {
  const int at = s.header->step;
  with_types(s.input_type, s.output_type, [&](auto in, auto out) {
    using In = decltype(in);
    using Out = decltype(out);
    walk(grid, [&](const Place& p) {
      const unsigned bad = grid.pack == 4 ? step_thread<4, In, Out>(s, p) : step_thread<1, In, Out>(s, p);
      if (bad) report(s.header, at, bad);
    });
  });
  finished(s, at);
}

namespace {

template <int N> BOTH void row(const Row& r, int weights, const Row1& a, int64_t at) {
  const bool guided = a.u != nullptr;
  const Pack<N> x = load<N>(a.x + at), c = load<N>(a.c + at);
  const Pack<N> u = guided ? load<N>(a.u + at) : Pack<N>{};
  Pack<N> next = scaled(r.a, x);
  add(next, r.bc, c);
  if (guided) add(next, r.bu, u);
  for (int k = 0; k < weights; ++k)
    if (r.w[k] != 0) add(next, r.w[k], load<N>(a.history[k] + at));
  if (r.d != 0) add(next, r.d, load<N>(a.n + at));
  store<N>(a.next + at, next);
  if (a.pushed) store<N>(a.pushed + at, remember(r, x, guided, u, c));
}

CLONES unsigned rows(const Row& r, int weights, const Row1& arrays, int64_t first, int64_t last) {
  for (; first + WIDE <= last; first += WIDE) row<WIDE>(r, weights, arrays, first);
  for (; first < last; ++first) row<1>(r, weights, arrays, first);
  return 0;
}

}  // namespace

void update(const Row& r, int weights, const Row1& arrays, int64_t count) {
  share(count, [&](int64_t first, int64_t last) { return rows(r, weights, arrays, first, last); });
}

}  // namespace edgediff::host
