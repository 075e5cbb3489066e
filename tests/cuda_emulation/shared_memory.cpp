// The shared memory of the block that runs. It lies far from all else, so that what lies beside it is told from other
// memory; under AddressSanitizer, which does that, it is of exactly its size.
#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>

#include "cuda_emulation.h"
#include "races.h"

namespace oes::emulation {
namespace {

unsigned char* memory = nullptr;
size_t memory_bytes = 0;
[[maybe_unused]] constexpr size_t kArenaBytes = size_t{16} << 20;

} // namespace

unsigned char* shared_memory() {
  return memory;
}

void renew_shared_memory() {
  std::memset(memory, 0xFF, memory_bytes);
}

void resize_shared_memory(size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  if (!memory || bytes != memory_bytes) { // of exactly that size, for its red zones
    std::free(memory);
    void* address = nullptr;
    if (posix_memalign(&address, 128, bytes) != 0) {
      throw std::bad_alloc();
    }
    memory = static_cast<unsigned char*>(address);
  }
  races::set_shared(memory, bytes, memory, bytes);
#else
  if (!memory) {
    void* mapped =
        mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) {
      throw std::bad_alloc();
    }
    memory = static_cast<unsigned char*>(mapped) + kArenaBytes / 2;
  }
  races::set_shared(memory - kArenaBytes / 2, kArenaBytes, memory, bytes);
#endif
  memory_bytes = bytes;
}

} // namespace oes::emulation
