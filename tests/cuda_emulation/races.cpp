#include "races.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "reports.h"

namespace oes::emulation::races {
namespace {

constexpr uint32_t kLate = 0x80000000u; // times start anew at the next launch

void set_flags(uintptr_t address, size_t bytes, uint8_t set, uint8_t cleared) {
  pages.visit(address, bytes, [=](Cell& cell, uintptr_t, size_t) {
    cell.flags = static_cast<uint8_t>((cell.flags & ~cleared) | set);
  });
}

} // namespace

void launch_begins(const uint3* indices) {
  threads = indices;
  blocks.clear();
  faults = 0;
  first_fault.clear();
  const bool late = present.now > kLate;
  if (late) {
    present = {};
    tickets = {};
  }
  pages.clean(late);
  present.launch = ++present.now;
  tickets.launch_begins();
}

void block_begins(uint3 block) {
  present.block = present.barrier = ++present.now;
  std::memset(present.warp_barrier, 0, sizeof(present.warp_barrier));
  blocks.push_back({present.now, block});
  tickets.block_begins();
}

std::string launch_ends() {
  if (faults < 2) {
    return first_fault;
  }
  return first_fault + " (and " + std::to_string(faults - 1) + " more such accesses)";
}

void set_shared(const unsigned char* where, size_t where_bytes, const unsigned char* memory, size_t bytes) {
  shared.arena = reinterpret_cast<uintptr_t>(where);
  shared.arena_bytes = where_bytes;
  shared.begin = reinterpret_cast<uintptr_t>(memory);
  shared.bytes = bytes;
  if (any_instrumented) {
    shared.words.assign(bytes / 4 + 1, {});
    shared.parts.resize(std::max(shared.parts.size(), bytes + 4));
  }
}

bool instrumented() {
  return any_instrumented;
}

void allocated(const void* pointer, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  set_flags(address - kRedZone, kRedZone, kRed, kUnwritten);
  set_flags(address, bytes, kUnwritten, kRed | kReleased | kCounter);
  set_flags(address + bytes, kRedZone, kRed, kUnwritten);
  allocations[address] = bytes;
}

void released(const void* pointer, size_t bytes) {
  set_flags(reinterpret_cast<uintptr_t>(pointer), bytes, kReleased, 0);
}

void forget(const void* pointer, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  set_flags(address - kRedZone, bytes + 2 * kRedZone, 0, kRed | kReleased | kUnwritten | kCounter);
  allocations.erase(address);
}

void written(const char* call, const void* pointer, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  pages.visit(address, bytes, [&](Cell& cell, uintptr_t at, size_t) {
    if (cell.flags & (kRed | kReleased)) {
      throw std::runtime_error(
          std::string(call) + ": " + place(address, bytes) + ", " +
          (cell.flags & kRed ? "out of bounds" : "which is released") + " from address " +
          std::to_string(at - address) + " on");
    }
    cell.flags &= static_cast<uint8_t>(~kUnwritten);
  });
}

} // namespace oes::emulation::races
