// The CUDA kernels, as the host sees them. Every function returns a cudaError_t as int; nothing waits for the device.
#pragma once

#include <string>

#include "types.h"

namespace edgediff::device {

struct Facts {
  int count = 0, driver = 0, runtime = 0;
  bool outdated = false;  // the driver is older than the runtime
};

int facts(Facts& out);
int multiprocessors(int device, int& out);
// Whether `address` is memory that kernels on `device` reach; `what` says what it is otherwise.
int reachable(int device, uint64_t address, bool& out, std::string& what);
// The device that a stream belongs to, where the runtime can tell (CUDA 12.8), otherwise -1.
int stream_device(int device, uint64_t stream, int& out);

int begin(const State& s, int device, int multiprocessors, bool aligned, uint64_t stream);
int step(const State& s, int device, int multiprocessors, bool aligned, uint64_t stream);
int unscale(const float* x, void* z, Type type, int64_t count, float scale, float shift, int device, uint64_t stream);
int pixels(const void* decoded, Type type, uint8_t* out, int64_t images, int64_t area, Header* header, int device,
           uint64_t stream);

std::string describe(int error);

}  // namespace edgediff::device
