#include "reports.h"

#include <algorithm>
#include <cstdio>

namespace oes::emulation::races {
namespace {

// The allocation that an address lies in or beside; the end if none.
auto allocation_of(uintptr_t address) {
  auto after = allocations.upper_bound(address + kRedZone);
  if (after != allocations.begin()) {
    --after;
    if (address < after->first + after->second + kRedZone) {
      return after;
    }
  }
  return allocations.end();
}

std::string who(uint3 block, int thread) {
  return "thread " + described(threads[thread]) + " of block " + described(block);
}

std::string access_of(bool writes, uintptr_t address, size_t bytes) {
  return who(blockIdx, present.thread) + (writes ? " writes " : " reads ") + place(address, bytes);
}

// Whether it is the first, which is told in detail.
bool first() {
  return !faults++;
}

} // namespace

uint32_t block_at(uint32_t time) {
  const auto after = std::upper_bound(
      blocks.begin(), blocks.end(), time, [](uint32_t t, const Block& block) { return t < block.begins; });
  return static_cast<uint32_t>(after - blocks.begin()) - 1;
}

std::string place(uintptr_t address, size_t bytes) {
  std::string text = std::to_string(bytes) + (bytes == 1 ? " byte" : " bytes") + " at ";
  if (address - shared.arena < shared.arena_bytes) {
    return text + "offset " + std::to_string(static_cast<intptr_t>(address - shared.begin)) + " of the " +
        std::to_string(shared.bytes) + " bytes of shared memory";
  }
  if (const auto found = allocation_of(address); found != allocations.end()) {
    return text + "offset " + std::to_string(static_cast<intptr_t>(address - found->first)) + " of the " +
        std::to_string(found->second) + " bytes of an allocation";
  }
  char digits[32];
  std::snprintf(digits, sizeof(digits), "%#zx", static_cast<size_t>(address));
  return text + "address " + digits;
}

void note_race(bool writes, uintptr_t address, size_t bytes, uint32_t time, int thread, const char* did) {
  if (first()) {
    const Quiet quiet;
    first_fault = "race: " + access_of(writes, address, bytes) + ", which " +
        who(blocks[block_at(time)].index, thread) + " " + did +
        (time >= present.block
             ? " since the last barrier"
             : " in the same launch, without __threadfence(), atomicAdd(), __threadfence() in between");
  }
}

void note_race_with_atomics(bool writes, uintptr_t address, size_t bytes) {
  if (first()) {
    const Quiet quiet;
    first_fault = "race: " + access_of(writes, address, bytes) + ", to which atomicAdd() is done in the same launch";
  }
}

void note_unwritten(uintptr_t address, size_t bytes) {
  if (first()) {
    const Quiet quiet;
    const bool in_shared = address - shared.arena < shared.arena_bytes;
    first_fault = "not initialised: " + access_of(false, address, bytes) + ", which " +
        (in_shared ? "the block has not written" : "nothing has written") + ", or not yet";
  }
}

void fail_at(const char* what, bool writes, uintptr_t address, size_t bytes) {
  listening = false;
  fail(what + (": " + access_of(writes, address, bytes)));
}

} // namespace oes::emulation::races
