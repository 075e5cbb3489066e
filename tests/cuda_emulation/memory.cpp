// Device memory.
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "cuda_emulation.h"
#include "fibers.h"
#include "races.h"

namespace oes::emulation {
namespace {

constexpr size_t kAlignment = 256; // cudaMalloc's
constexpr size_t kMostReleased = size_t{16} << 20; // bytes that are kept from being allocated again

std::map<void*, size_t> allocations;
std::deque<std::pair<void*, size_t>> released;
size_t released_bytes = 0;

// Red zones lie around it where the race detector looks after them. AddressSanitizer has its own.
size_t margin() {
  static_assert(races::kRedZone % kAlignment == 0);
  return races::instrumented() ? races::kRedZone : 0;
}

std::unique_lock<std::mutex> outside_of_kernels() {
  if (on_stack(__builtin_frame_address(0))) {
    throw std::runtime_error("a kernel may not allocate, release, copy or fill device memory");
  }
  return std::unique_lock(one_at_a_time);
}

void free_oldest() {
  const auto [address, bytes] = released.front();
  released.pop_front();
  released_bytes -= bytes;
  races::forget(address, bytes);
  std::free(static_cast<char*>(address) - margin());
}

} // namespace

void* allocate(size_t bytes) {
  const auto lock = outside_of_kernels();
  void* start = nullptr;
  if (posix_memalign(&start, kAlignment, bytes + 2 * margin()) != 0) {
    throw std::runtime_error("cudaMalloc: out of memory");
  }
  void* address = static_cast<char*>(start) + margin();
  std::memset(address, 0xFF, bytes);
  if (races::instrumented()) {
    races::allocated(address, bytes);
  }
  allocations[address] = bytes;
  return address;
}

void release(void* address) {
  const auto lock = outside_of_kernels();
  const auto found = allocations.find(address);
  if (found == allocations.end()) {
    if (address) {
      throw std::runtime_error("cudaFree: invalid argument");
    }
    return;
  }
  const size_t bytes = found->second;
  allocations.erase(found);
  if (!races::instrumented()) {
    std::free(address);
    return;
  }
  races::released(address, bytes);
  released.emplace_back(address, bytes);
  released_bytes += bytes;
  while (released_bytes > kMostReleased) {
    free_oldest();
  }
}

void copy(void* to, const void* from, size_t bytes) {
  if (races::instrumented()) {
    const auto lock = outside_of_kernels();
    races::written("cudaMemcpy", to, bytes);
  }
  std::memcpy(to, from, bytes);
}

void fill(void* address, int value, size_t bytes) {
  if (races::instrumented()) {
    const auto lock = outside_of_kernels();
    races::written("cudaMemset", address, bytes);
  }
  std::memset(address, value, bytes);
}

} // namespace oes::emulation
