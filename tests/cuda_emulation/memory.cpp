// Device memory.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cuda_emulation.h"

namespace oes::emulation {

void* allocate(size_t bytes) {
  void* address = nullptr;
  if (posix_memalign(&address, 256, bytes) != 0) {
    throw std::runtime_error("cudaMalloc: out of memory");
  }
  std::memset(address, 0xFF, bytes);
  return address;
}

void release(void* address) {
  std::free(address);
}

void copy(void* to, const void* from, size_t bytes) {
  std::memcpy(to, from, bytes);
}

void fill(void* address, int value, size_t bytes) {
  std::memset(address, value, bytes);
}

void thread_fence() {}

unsigned atomic_add(unsigned* address, unsigned value) {
  const unsigned before = *address;
  *address += value;
  return before;
}

} // namespace oes::emulation
