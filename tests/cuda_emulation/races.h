// What kernels do with memory, as far as the compiler tells it (see README.md): races, bounds, what is not initialised.
//
// Blocks run one after the other, and threads to their next barrier without interruption. So time is a counter that
// barriers, fences, atomics and the starts of blocks move on; for every word of memory it is kept who wrote and read it
// last, and when.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>

#include "cuda_emulation.h"

namespace oes::emulation {

// Held by launches and by what the host does with device memory.
inline std::mutex one_at_a_time;

// Ends the launch: the thread that runs has gone wrong and does not return.
[[noreturn]] void fail(const std::string& what);

std::string described(uint3 index);

void resize_shared_memory(size_t bytes);
// For a block that starts.
void renew_shared_memory();

namespace races {

// Whether a kernel's own code runs now.
inline bool listening = false;

// The thread that runs, of its block, and the times that tell what came before what it does.
struct Present {
  uint32_t now = 1;
  uint32_t launch = 1, block = 1; // since when they run
  uint32_t barrier = 1; // the block's last one
  uint32_t warp_barrier[32] = {};
  int thread = 0, warp = 0;
};
inline Present present;

inline void thread_runs(int thread) {
  present.thread = thread;
  present.warp = thread / 32;
}
inline void barrier_passed() {
  present.barrier = ++present.now;
}
inline void warp_barrier_passed(int warp) {
  present.warp_barrier[warp] = ++present.now;
}

// Whether what a thread of this block did at that time is over, and seen, for the thread that runs.
inline bool before_present(uint32_t time, int thread) {
  return time < present.barrier || thread == present.thread ||
      (thread / 32 == present.warp && time < present.warp_barrier[present.warp]);
}

// `threads`: indices of the threads of a block. Shared memory lies in an arena of which nothing else may be touched.
void launch_begins(const uint3* threads);
void block_begins(uint3 block);
// What was found since the launch began; "" if nothing.
std::string launch_ends();

void set_shared(const unsigned char* arena, size_t arena_bytes, const unsigned char* memory, size_t bytes);

// Whether there are kernels here that the compiler has instrumented.
bool instrumented();

// Device memory that only kernels and copies write. A zone of kRedZone bytes before and behind it is nobody's.
constexpr size_t kRedZone = 256;
void allocated(const void* address, size_t bytes);
void released(const void* address, size_t bytes);
void forget(const void* address, size_t bytes);
// By the host; throws std::runtime_error that names the call where it is not all one's own.
void written(const char* call, const void* address, size_t bytes);

} // namespace races
} // namespace oes::emulation
