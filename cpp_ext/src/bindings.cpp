// The Python face of the CPU twin. What comes as an address was checked by edgediff (edgediff/device/geometry.py);
// arrays are checked here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "grid.h"
#include "host.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace edgediff {
namespace {

constexpr int ABI = 3;  // of the structures and the calls below; edgediff refuses another

[[noreturn]] void refuse(const std::string& why) { throw nb::value_error(why.c_str()); }

template <class T> T* at(uint64_t address) { return reinterpret_cast<T*>(static_cast<uintptr_t>(address)); }

// The launches of a loop. Holds addresses alone: the caller keeps the memory.
class Update {
 public:
  Update(nb::bytes state, std::optional<std::tuple<uint32_t, uint32_t, int>> grid) {
    if (state.size() != sizeof(State))
      refuse("the state is " + std::to_string(state.size()) + " bytes; it must be " + std::to_string(sizeof(State)));
    memcpy(&state_, state.c_str(), sizeof(State));
    if (grid) grid_ = host::Grid{std::get<0>(*grid), std::get<1>(*grid), std::get<2>(*grid)};
  }

  void begin() const {
    nb::gil_scoped_release release;
    grid_ ? host::begin_as_device(state_, *grid_) : host::begin(state_);
  }

  void step() const {
    nb::gil_scoped_release release;
    grid_ ? host::step_as_device(state_, *grid_) : host::step(state_);
  }

 private:
  State state_{};
  std::optional<host::Grid> grid_;  // of a GPU, where it is walked
};

using Values = nb::ndarray<const float, nb::device::cpu, nb::c_contig>;
using Result = nb::ndarray<float, nb::device::cpu, nb::c_contig>;

void same(const char* name, size_t count, size_t wanted) {
  if (count != wanted)
    refuse(std::string(name) + " has " + std::to_string(count) + " values; x has " + std::to_string(wanted));
}

// A field as NumPy writes it: name, type ("f4"; "8f4" for eight of them), offset.
template <class T> nb::tuple field(const char* name, size_t offset) {
  using One = std::remove_extent_t<T>;
  const std::string count = std::is_array_v<T> ? std::to_string(std::extent_v<T>) : "";
  const bool whole = std::is_same_v<One, Type> || std::is_signed_v<One>;
  const char* kind = std::is_floating_point_v<One> ? "f" : whole ? "i" : "u";  // an address is a whole number too
  return nb::make_tuple(name, count + kind + std::to_string(sizeof(One)), offset);
}

#define APPEND(type, name) out.append(field<type>(#name, offsetof(Struct, name)));
nb::tuple row_fields() {
  using Struct = Row;
  nb::list out;
  ROW_FIELDS(APPEND)
  return nb::tuple(out);
}
nb::tuple header_fields() {
  using Struct = Header;
  nb::list out;
  HEADER_FIELDS(APPEND)
  return nb::tuple(out);
}
nb::tuple state_fields() {
  using Struct = State;
  nb::list out;
  STATE_FIELDS(APPEND)
  return nb::tuple(out);
}
#undef APPEND

// A column as Python gives it, and its way into the row.
template <class T> struct Column {
  using Given = T;
};
template <> struct Column<Flag> {
  using Given = bool;
};
template <> struct Column<Weights> {
  using Given = const std::vector<float>&;
};
void put(float& column, float given) { column = given; }
void put(Flag& column, bool given) { column = given; }
void put(Weights& column, const std::vector<float>& given) {
  if (given.size() > size_t(MAX_HISTORY))
    refuse("the row has " + std::to_string(given.size()) + " history weights; the kernels hold " + std::to_string(MAX_HISTORY));
  std::copy(given.begin(), given.end(), column);
}

#define PARAMETER(type, name) , Column<type>::Given name
#define PUT(type, name) put(row.name, name);
void update_arrays(Values x, std::optional<Values> u, Values c, const std::vector<Values>& history, std::optional<Values> n,
                   Result next, std::optional<Result> pushed ROW_COLUMNS(PARAMETER)) {
  Row row{};
  ROW_COLUMNS(PUT)
  const size_t count = x.size();
  const float* past[MAX_HISTORY] = {};
  const int weights = int(std::min(w.size(), history.size()));
  for (int k = 0; k < weights; ++k) {
    same("history", history[k].size(), count);
    past[k] = history[k].data();
  }
  same("c", c.size(), count);
  same("next", next.size(), count);
  if (u) same("u", u->size(), count);
  if (n) same("n", n->size(), count);
  if (pushed) same("pushed", pushed->size(), count);
  if (d != 0 && !n) refuse("this row adds noise (d != 0) but none was given");
  const host::Row1 arrays{x.data(), u ? u->data() : nullptr, c.data(), n ? n->data() : nullptr, past,
                          next.data(), pushed ? pushed->data() : nullptr};
  nb::gil_scoped_release release;
  host::update(row, weights, arrays, int64_t(count));
}
#undef PARAMETER
#undef PUT

void normal_values(uint64_t seed, uint64_t draw, int64_t threads, Result out) {
  if (threads < 1 || threads > int64_t(1) << 31)
    refuse("threads is " + std::to_string(threads) + "; it must be 1 .. 2147483648");
  if (out.size() > size_t(1) << 31)
    refuse("out holds " + std::to_string(out.size()) + " values; it must be at most 2147483648, as an image");
  nb::gil_scoped_release release;
  if (out.size()) host::normals(seed, draw, out.data(), int64_t(out.size()), uint32_t(threads));
}

}  // namespace
}  // namespace edgediff

NB_MODULE(_kernels, m) {
  using namespace edgediff;
  m.doc() = "The update of every sampler as one kernel.";
  m.attr("ABI") = ABI;
  m.attr("MAX_HISTORY") = MAX_HISTORY;
  m.attr("ROW_BYTES") = sizeof(Row);
  m.attr("HEADER_BYTES") = sizeof(Header);
  m.attr("STATE_BYTES") = sizeof(State);
  m.attr("ROW_FIELDS") = row_fields();
  m.attr("HEADER_FIELDS") = header_fields();
  m.attr("STATE_FIELDS") = state_fields();
  m.attr("NOT_BAD") = NOT_BAD;
  m.attr("BAD_OUTPUT") = BAD_OUTPUT;
  m.attr("BAD_STATE") = BAD_STATE;
  m.attr("BAD_PIXELS") = BAD_PIXELS;
  nb::class_<Update>(m, "Update",
                     "The launches of one loop on the host, by edgediff's `Geometry.state`; the caller keeps the memory. "
                     "`grid`: walk the (x, y, pack) that a GPU would.")
      .def(nb::init<nb::bytes, std::optional<std::tuple<uint32_t, uint32_t, int>>>(), nb::kw_only(), "state"_a,
           "grid"_a.none() = nb::none())
      .def("begin", &Update::begin, "Make the first state and the model's first input.")
      .def("step", &Update::step, "Run the next row.");
#define ARGUMENT(type, name) , nb::arg(#name)
  m.def("update", &update_arrays, nb::kw_only(), "x"_a.noconvert(), "u"_a.noconvert().none(), "c"_a.noconvert(),
        "history"_a.noconvert(), "n"_a.noconvert().none(), "next"_a.noconvert(), "pushed"_a.noconvert().none() ROW_COLUMNS(ARGUMENT),
        "One row on float32 arrays of the host: writes x' to `next` and, where given, h' to `pushed`.");
#undef ARGUMENT
  m.def("normals", &normal_values, nb::kw_only(), "seed"_a, "draw"_a, "threads"_a, "out"_a.noconvert(),
        "The draw'th values of torch's CUDA generator with `threads` threads, on the host.");
  m.def("unscale", [](uint64_t x, uint64_t z, bool half, int64_t count, float scale, float shift) {
    host::unscale(at<const float>(x), at<void>(z), half ? Type::f16 : Type::f32, count, scale, shift);
  }, nb::kw_only(), "x"_a, "z"_a, "half"_a, "count"_a, "scale"_a, "shift"_a, "z = x/scale + shift, between addresses.");
  m.def("to_uint8", [](uint64_t decoded, uint64_t pixels, uint64_t header, bool half, int64_t images, int64_t area) {
    at<Header>(header)->bad_what |= host::pixels(at<const void>(decoded), half ? Type::f16 : Type::f32, at<uint8_t>(pixels), images, area);
  }, nb::kw_only(), "decoded"_a, "pixels"_a, "header"_a, "half"_a, "images"_a, "area"_a,
        "Decoder output (images, 3, area) -> uint8 (images, area, 3), between addresses.");
}
