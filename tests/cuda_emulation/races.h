// What kernels do with memory, as far as the compiler tells it (see README.md): races, bounds, what is not initialised.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace oes::emulation {

// Ends the launch: the thread that runs has gone wrong and does not return.
[[noreturn]] void fail(const std::string& what);

namespace races {

void launch_begins(const void* shared, size_t shared_bytes);
// What was found since then; "" if nothing.
std::string launch_ends();
void block_begins();
void thread_runs(int thread);
// Whether a kernel's own code runs now.
void listen(bool now);
void barrier();
void warp_barrier(int warp);

} // namespace races
} // namespace oes::emulation
