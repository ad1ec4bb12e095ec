// The Python face. Every argument is checked here, before anything is read or launched.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "grid.h"
#include "host.h"
#ifdef EDGEDIFF_CUDA
#include "device.h"
#endif

namespace nb = nanobind;
using namespace nb::literals;

namespace edgediff {
namespace {

constexpr int ABI = 2;  // of Row, Header and the calls below; edgediff refuses another
constexpr int HOST = -1;

struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

[[noreturn]] void refuse(const std::string& why) { throw nb::value_error(why.c_str()); }

struct Format {
  const char* name;
  Type type;
  int bytes;
};
constexpr Format FORMATS[] = {{"float32", Type::f32, 4}, {"float16", Type::f16, 2}, {"bfloat16", Type::bf16, 2},
                              {"int64", Type::i64, 8},   {"int32", Type::i32, 4}};

const Format& format(const std::string& what, const std::string& name, bool whole) {
  std::string known;
  for (const Format& f : FORMATS) {
    if (!whole && (f.type == Type::i64 || f.type == Type::i32)) continue;
    if (name == f.name) return f;
    known += (known.empty() ? "" : ", ") + std::string(f.name);
  }
  refuse(what + " is of type " + name + "; choose from " + known);
}

using Buffer = std::pair<uint64_t, uint64_t>;  // address, bytes

#ifdef EDGEDIFF_CUDA
void check(int error, const char* doing) {
  if (error) throw CudaError(std::string(doing) + ": " + device::describe(error));
}
#endif

int device_count() {
#ifdef EDGEDIFF_CUDA
  device::Facts facts;
  const int error = device::facts(facts);
  const auto version = [](int v) { return std::to_string(v / 1000) + "." + std::to_string(v % 1000 / 10); };
  if (error && facts.driver == 0) throw CudaError("no CUDA device can be used: no NVIDIA driver was found");
  if (facts.outdated)
    throw CudaError("no CUDA device can be used: the driver is of CUDA " + version(facts.driver) +
                    ", these kernels were built by CUDA " + version(facts.runtime));
  if (error) throw CudaError("no CUDA device can be used: " + device::describe(error));
  return facts.count;
#else
  throw CudaError("edgediff-kernels was built without CUDA");
#endif
}

int open_device(int ordinal) {
#ifdef EDGEDIFF_CUDA
  const int count = device_count();
  if (ordinal < 0 || ordinal >= count)
    refuse("device is " + std::to_string(ordinal) + "; this machine has 0 .. " + std::to_string(count - 1));
  int found = 0;
  check(device::multiprocessors(ordinal, found), "asking the device");
  return found;
#else
  throw CudaError("edgediff-kernels was built without CUDA; device " + std::to_string(ordinal) + " cannot be used");
#endif
}

void check_reachable(int ordinal, const std::string& name, uint64_t address) {
#ifdef EDGEDIFF_CUDA
  bool good = false;
  std::string what;
  check(device::reachable(ordinal, address, good, what), "asking what an address is");
  if (!good) refuse("buffer " + name + " is " + what + "; it must be memory of device " + std::to_string(ordinal));
#else
  (void)ordinal, (void)name, (void)address;
#endif
}

void check_buffer(int device, const std::string& name, const Buffer& given, uint64_t bytes, uint64_t alignment) {
  if (given.first == 0) refuse("buffer " + name + " is a null pointer");
  if (given.first % alignment)
    refuse("buffer " + name + " lies at " + std::to_string(given.first) + "; it must be aligned to " + std::to_string(alignment) + " bytes");
  if (given.second < bytes)
    refuse("buffer " + name + " holds " + std::to_string(given.second) + " bytes; this geometry needs " + std::to_string(bytes));
  if (device != HOST) check_reachable(device, name, given.first);
}

int64_t positive(const char* name, int64_t value, int64_t most) {
  if (value < 1 || value > most)
    refuse(std::string(name) + " is " + std::to_string(value) + "; it must be 1 .. " + std::to_string(most));
  return value;
}

// Checks a stream against a device once; streams are asked about only when they change.
class Streams {
 public:
  void check(int ordinal, uint64_t stream) {
    if (known_ && stream == last_) return;
#ifdef EDGEDIFF_CUDA
    int owner = -1;
    edgediff::check(device::stream_device(ordinal, stream, owner), "asking the stream");
    if (owner >= 0 && owner != ordinal)
      refuse("the stream belongs to device " + std::to_string(owner) + "; the buffers lie on device " + std::to_string(ordinal));
#else
    (void)ordinal;
#endif
    known_ = true, last_ = stream;
  }

 private:
  bool known_ = false;
  uint64_t last_ = 0;
};

// The launches of a loop with everything checked and laid out. Holds addresses alone: the caller keeps the memory.
class Update {
 public:
  Update(int device, int64_t batch, int64_t size, int64_t stride, int64_t depth, int64_t rows, int64_t copies,
         const std::string& input, const std::string& output, const std::string& timestep,
         const std::map<std::string, Buffer>& buffers, int emulated)
      : device_(device), emulated_(emulated) {
    constexpr int64_t most = int64_t(1) << 40;
    positive("batch", batch, 65535);
    positive("size", size, int64_t(1) << 31);
    positive("stride", stride, int64_t(1) << 31);
    positive("rows", rows, 1 << 20);
    positive("copies", copies, 2);
    if (stride < size) refuse("stride is " + std::to_string(stride) + ", below the size, " + std::to_string(size));
    if (depth < 0 || depth > MAX_HISTORY)
      refuse("depth is " + std::to_string(depth) + "; the kernels hold a history of 0 .. " + std::to_string(MAX_HISTORY));
    if (batch * stride > most) refuse("batch * stride is more than 2**40 values");
    if (device < HOST) refuse("device is " + std::to_string(device) + "; it must be -1 (the host) or a CUDA device");
    if (emulated < 0 || (emulated && device != HOST)) refuse("emulated is a number of multiprocessors, for the host alone");
    const Format& in = format("the model's input", input, false);
    const Format& out = format("the model's output", output, false);
    const Format& t = format("the timestep", timestep, true);
    if (device != HOST) multiprocessors_ = open_device(device);
    const uint64_t values = uint64_t(batch * size);
    struct Need {
      const char* name;
      uint64_t bytes, alignment;
      bool optional;
    };
    const Need needs[] = {
        {"header", sizeof(Header), 8, false},
        {"rows", uint64_t(rows) * sizeof(Row), 4, false},
        {"seeds", uint64_t(batch) * 8, 8, false},
        {"x", values * 4, 4, false},
        {"history", uint64_t(depth) * values * 4, 4, depth == 0},
        {"x0", values * 4, 4, true},
        {"output", uint64_t(copies) * values * out.bytes, uint64_t(out.bytes), false},
        {"input", uint64_t(copies * batch * stride) * in.bytes, uint64_t(in.bytes), false},
        {"timestep", uint64_t(copies * batch) * t.bytes, uint64_t(t.bytes), false},
    };
    std::string names;
    uint64_t found[std::size(needs)] = {};
    for (size_t k = 0; k < std::size(needs); ++k) {
      const Need& need = needs[k];
      names += (k ? ", " : "") + std::string(need.name);
      const auto given = buffers.find(need.name);
      if (given == buffers.end()) {
        if (!need.optional) refuse("buffer " + std::string(need.name) + " is missing");
        continue;
      }
      check_buffer(device, need.name, given->second, need.bytes, need.alignment);
      found[k] = given->second.first;
      // Wide accesses: four values at once.
      if (k >= 3 && k < 8) aligned_ = aligned_ && found[k] % 16 == 0;
    }
    for (const auto& [name, buffer] : buffers)
      if (std::none_of(std::begin(needs), std::end(needs), [&](const Need& n) { return name == n.name; }))
        refuse("no buffer " + name + "; choose from " + names);
    const auto at = [&](int k) { return reinterpret_cast<void*>(static_cast<uintptr_t>(found[k])); };
    state_ = State{static_cast<Header*>(at(0)), static_cast<const Row*>(at(1)), static_cast<const uint64_t*>(at(2)),
                   static_cast<float*>(at(3)), static_cast<float*>(at(4)), static_cast<float*>(at(5)),
                   at(6), at(7), at(8), size, stride, int32_t(batch), in.type, out.type, t.type};
  }

  void begin(uint64_t stream) {
    if (device_ == HOST) {
      nb::gil_scoped_release release;
      emulated_ ? host::begin_as_device(state_, emulated_, aligned_) : host::begin(state_);
      return;
    }
#ifdef EDGEDIFF_CUDA
    streams_.check(device_, stream);
    check(device::begin(state_, device_, multiprocessors_, aligned_, stream), "launching the first state");
#endif
    (void)stream;
  }

  void step(uint64_t stream) {
    if (device_ == HOST) {
      nb::gil_scoped_release release;
      emulated_ ? host::step_as_device(state_, emulated_, aligned_) : host::step(state_);
      return;
    }
#ifdef EDGEDIFF_CUDA
    streams_.check(device_, stream);
    check(device::step(state_, device_, multiprocessors_, aligned_, stream), "launching the update");
#endif
    (void)stream;
  }

 private:
  int device_, emulated_, multiprocessors_ = 0;
  bool aligned_ = true;
  State state_{};
  Streams streams_;
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
  const char* kind = std::is_floating_point_v<One> ? "f" : std::is_signed_v<One> ? "i" : "u";
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
  positive("threads", threads, int64_t(1) << 31);
  nb::gil_scoped_release release;
  if (out.size()) host::normals(seed, draw, out.data(), int64_t(out.size()), uint32_t(threads));
}

void unscale_latents(int device, const Buffer& x, const Buffer& z, const std::string& type, int64_t count, float scale,
             float shift, uint64_t stream) {
  const Format& f = format("z", type, false);
  positive("count", count, int64_t(1) << 40);
  if (device != HOST) open_device(device);
  check_buffer(device, "x", x, uint64_t(count) * 4, 4);
  check_buffer(device, "z", z, uint64_t(count) * f.bytes, uint64_t(f.bytes));
  const auto* from = reinterpret_cast<const float*>(static_cast<uintptr_t>(x.first));
  void* to = reinterpret_cast<void*>(static_cast<uintptr_t>(z.first));
  if (device == HOST) host::unscale(from, to, f.type, count, scale, shift);
#ifdef EDGEDIFF_CUDA
  else {
    Streams().check(device, stream);
    check(device::unscale(from, to, f.type, count, scale, shift, device, stream), "launching the latents' scaling");
  }
#endif
  (void)stream;
}

void to_uint8(int device, const Buffer& decoded, const Buffer& pixels, const Buffer& header, const std::string& type,
              int64_t images, int64_t area, uint64_t stream) {
  const Format& f = format("decoded", type, false);
  positive("images", images, 65535);
  positive("area", area, int64_t(1) << 31);
  if (device != HOST) open_device(device);
  const uint64_t values = uint64_t(3 * images * area);
  check_buffer(device, "decoded", decoded, values * f.bytes, uint64_t(f.bytes));
  check_buffer(device, "pixels", pixels, values, 1);
  check_buffer(device, "header", header, sizeof(Header), 8);
  const void* from = reinterpret_cast<const void*>(static_cast<uintptr_t>(decoded.first));
  auto* to = reinterpret_cast<uint8_t*>(static_cast<uintptr_t>(pixels.first));
  auto* flags = reinterpret_cast<Header*>(static_cast<uintptr_t>(header.first));
  if (device == HOST) flags->bad_what |= host::pixels(from, f.type, to, images, area);
#ifdef EDGEDIFF_CUDA
  else {
    Streams().check(device, stream);
    check(device::pixels(from, f.type, to, images, area, flags, device, stream), "launching the pixels");
  }
#endif
  (void)stream;
}

nb::dict facts() {
  nb::dict out;
#ifdef EDGEDIFF_CUDA
  out["cuda"] = EDGEDIFF_CUDA;
  out["architectures"] = EDGEDIFF_ARCHITECTURES;
  out["chosen"] = bool(EDGEDIFF_CHOSEN);
#else
  out["cuda"] = nb::none();
  out["architectures"] = "";
  out["chosen"] = false;
#endif
  return out;
}

}  // namespace
}  // namespace edgediff

NB_MODULE(_kernels, m) {
  using namespace edgediff;
  m.doc() = "The update of every sampler as one kernel.";
  nb::exception<CudaError>(m, "CudaError", PyExc_RuntimeError);
  m.attr("ABI") = ABI;
  m.attr("MAX_HISTORY") = MAX_HISTORY;
  m.attr("ROW_BYTES") = sizeof(Row);
  m.attr("HEADER_BYTES") = sizeof(Header);
  m.attr("ROW_FIELDS") = row_fields();
  m.attr("HEADER_FIELDS") = header_fields();
  m.attr("NOT_BAD") = NOT_BAD;
  m.attr("BAD_OUTPUT") = BAD_OUTPUT;
  m.attr("BAD_STATE") = BAD_STATE;
  m.attr("BAD_PIXELS") = BAD_PIXELS;
  m.def("facts", &facts, "The CUDA version and the architectures this was built for (cuda is None without), and whether the builder chose "
        "them.");
  m.def("device_count", &device_count, "CUDA devices here; CudaError, with the reason, where none can be used.");
  nb::class_<Update>(m, "Update",
                     "The launches of one loop on one device (-1: the host), checked and laid out. `buffers` maps names to "
                     "(address, bytes); the caller keeps the memory. `emulated`, on the host: walk the grid that a GPU of "
                     "so many multiprocessors would.")
      .def(nb::init<int, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, const std::string&, const std::string&,
                    const std::string&, const std::map<std::string, Buffer>&, int>(),
           nb::kw_only(), "device"_a, "batch"_a, "size"_a, "stride"_a, "depth"_a, "rows"_a, "copies"_a, "input"_a,
           "output"_a, "timestep"_a, "buffers"_a, "emulated"_a = 0)
      .def("begin", &Update::begin, "stream"_a = 0, "Make the first state and the model's first input.")
      .def("step", &Update::step, "stream"_a = 0, "Run the next row.");
#define ARGUMENT(type, name) , nb::arg(#name)
  m.def("update", &update_arrays, nb::kw_only(), "x"_a.noconvert(), "u"_a.noconvert().none(), "c"_a.noconvert(),
        "history"_a.noconvert(), "n"_a.noconvert().none(), "next"_a.noconvert(), "pushed"_a.noconvert().none() ROW_COLUMNS(ARGUMENT),
        "One row on float32 arrays of the host: writes x' to `next` and, where given, h' to `pushed`.");
#undef ARGUMENT
  m.def("normals", &normal_values, nb::kw_only(), "seed"_a, "draw"_a, "threads"_a, "out"_a.noconvert(),
        "The draw'th values of torch's CUDA generator with `threads` threads, on the host.");
  m.def("unscale", &unscale_latents, nb::kw_only(), "device"_a, "x"_a, "z"_a, "type"_a, "count"_a, "scale"_a, "shift"_a,
        "stream"_a = 0, "z = x/scale + shift, from float32 (address, bytes) to `type`.");
  m.def("to_uint8", &to_uint8, nb::kw_only(), "device"_a, "decoded"_a, "pixels"_a, "header"_a, "type"_a, "images"_a,
        "area"_a, "stream"_a = 0, "Decoder output (images, 3, area) -> uint8 (images, area, 3).");
}
