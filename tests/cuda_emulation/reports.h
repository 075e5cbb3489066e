// What the race detector knows of the launch that runs, and says when something is wrong.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "races.h"
#include "shadow.h"
#include "tickets.h"

namespace oes::emulation::races {

struct Block {
  uint32_t begins;
  uint3 index;
};

struct SharedMemory {
  uintptr_t arena = 0, begin = 0;
  size_t arena_bytes = 0, bytes = 0;
  std::vector<Cell> words, parts; // the cells of words, and of the bytes of split ones
};

inline bool any_instrumented = false;
inline const uint3* threads = nullptr;
inline std::vector<Block> blocks; // of the launch, as they ran
inline Tickets tickets;
inline Pages pages;
inline SharedMemory shared;
inline std::map<uintptr_t, size_t> allocations; // begin and bytes
inline size_t faults = 0; // found in the launch
inline std::string first_fault;

// How many blocks ran before the one that runs.
inline uint32_t run_index() {
  return static_cast<uint32_t>(blocks.size()) - 1;
}
// The same of the block that ran at a time.
uint32_t block_at(uint32_t time);

// As in "4 bytes at offset 40 of the 40 bytes of an allocation".
std::string place(uintptr_t address, size_t bytes);

// While it lives, the library's own functions, which may be instrumented as well, are not listened to.
class Quiet {
 public:
  Quiet() : before_(listening) {
    listening = false;
  }
  ~Quiet() {
    listening = before_;
  }
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;

 private:
  bool before_;
};

// `did`: what the other thread did at that time.
void note_race(bool writes, uintptr_t address, size_t bytes, uint32_t time, int thread, const char* did);
void note_race_with_atomics(bool writes, uintptr_t address, size_t bytes);
void note_unwritten(uintptr_t address, size_t bytes);
[[noreturn]] void fail_at(const char* what, bool writes, uintptr_t address, size_t bytes);

} // namespace oes::emulation::races
