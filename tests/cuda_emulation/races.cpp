#include "races.h"

namespace oes::emulation::races {

void launch_begins(const void*, size_t) {}
std::string launch_ends() {
  return "";
}
void block_begins() {}
void thread_runs(int) {}
void listen(bool) {}
void barrier() {}
void warp_barrier(int) {}

} // namespace oes::emulation::races
