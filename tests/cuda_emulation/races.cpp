#include "races.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <stdexcept>
#include <vector>

#include "fibers.h"
#include "shadow.h"
#include "tickets.h"

namespace oes::emulation::races {
namespace {

constexpr uint32_t kLate = 0x80000000u; // times start anew at the next launch

struct Block {
  uint32_t begins;
  uint3 index;
};

bool any_instrumented = false;
const uint3* threads = nullptr;
std::vector<Block> blocks; // of the launch, as they ran
Tickets tickets;
Pages pages;

uintptr_t arena = 0, shared = 0;
size_t arena_bytes = 0, shared_bytes = 0;
std::vector<Cell> shared_words, shared_parts;

std::map<uintptr_t, size_t> allocations;

size_t faults = 0;
std::string first_fault;

uint32_t run_index() {
  return static_cast<uint32_t>(blocks.size()) - 1;
}

// Of the block that ran at that time.
uint32_t block_at(uint32_t time) {
  const auto after = std::upper_bound(
      blocks.begin(), blocks.end(), time, [](uint32_t t, const Block& block) { return t < block.begins; });
  return static_cast<uint32_t>(after - blocks.begin()) - 1;
}

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

std::string place(uintptr_t address, size_t bytes) {
  std::string text = std::to_string(bytes) + (bytes == 1 ? " byte" : " bytes") + " at ";
  if (address - arena < arena_bytes) {
    return text + "offset " + std::to_string(static_cast<intptr_t>(address - shared)) + " of the " +
        std::to_string(shared_bytes) + " bytes of shared memory";
  }
  if (const auto found = allocation_of(address); found != allocations.end()) {
    return text + "offset " + std::to_string(static_cast<intptr_t>(address - found->first)) + " of the " +
        std::to_string(found->second) + " bytes of an allocation";
  }
  char digits[32];
  std::snprintf(digits, sizeof(digits), "%#zx", static_cast<size_t>(address));
  return text + "address " + digits;
}

std::string who(uint3 block, int thread) {
  return "thread " + described(threads[thread]) + " of block " + described(block);
}

std::string access_of(bool writes, uintptr_t address, size_t bytes) {
  return who(blockIdx, present.thread) + (writes ? " writes " : " reads ") + place(address, bytes);
}

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

void note(const std::string& what) {
  if (!faults++) {
    first_fault = what;
  }
}

// `did`: what that thread did at that time.
__attribute__((noinline)) void note_race(
    bool writes, uintptr_t address, size_t bytes, uint32_t time, int thread, const char* did) {
  if (faults) {
    ++faults;
    return;
  }
  const Quiet quiet;
  const bool in_block = time >= present.block;
  const uint3 block = blocks[block_at(time)].index;
  note(
      "race: " + access_of(writes, address, bytes) + ", which " + who(block, thread) + " " + did +
      (in_block ? " since the last barrier" : " in the same launch"));
}

// Whether what a thread did in this launch is over, and seen, for the thread that runs.
template <bool kShared>
inline bool seen(uint32_t time, int thread) {
  if (kShared || time >= present.block) {
    return before_present(time, thread);
  }
  const Quiet quiet;
  return tickets.sees(block_at(time), time, thread);
}

template <bool kShared, bool kWrites>
inline void check_write_before(const Cell& cell, uintptr_t address, size_t bytes) {
  if (cell.written >= (kShared ? present.block : present.launch) && !seen<kShared>(cell.written, cell.writer)) {
    note_race(kWrites, address, bytes, cell.written, cell.writer, "wrote");
  }
}

template <bool kShared>
inline void check_reads_before(const Cell& cell, uintptr_t address, size_t bytes) {
  if (cell.read < (kShared ? present.block : present.launch)) {
    return;
  }
  bool fine;
  if (cell.readers == kBlocks) {
    const Quiet quiet;
    fine = tickets.sees_all(run_index());
  } else if (!kShared && cell.read < present.block) {
    fine = seen<false>(cell.read, cell.reader);
  } else if (cell.read < present.barrier) {
    fine = true;
  } else if (cell.readers == kOneThread) {
    fine = before_present(cell.read, cell.reader);
  } else {
    fine = cell.readers == kLanesOfAWarp && cell.reader / 32 == present.warp &&
        cell.read < present.warp_barrier[present.warp];
  }
  if (!fine) {
    note_race(
        true, address, bytes, cell.read, cell.reader,
        cell.readers == kBlocks          ? "and other blocks read"
            : cell.readers != kOneThread ? "and others read"
                                         : "read");
  }
}

template <bool kShared>
inline void record_read(Cell& cell) {
  if (cell.read < (kShared ? present.block : present.launch)) {
    cell.readers = kOneThread;
  } else if (!kShared && (cell.readers == kBlocks || cell.read < present.block)) {
    cell.readers = kBlocks;
  } else if (cell.read < present.barrier || (cell.readers == kOneThread && cell.reader == present.thread)) {
    cell.readers = kOneThread;
  } else if (cell.reader / 32 != present.warp || cell.readers == kWarpsOfABlock) {
    cell.readers = kWarpsOfABlock;
  } else {
    cell.readers = cell.read < present.warp_barrier[present.warp] ? kOneThread : kLanesOfAWarp;
  }
  cell.read = present.now;
  cell.reader = static_cast<uint16_t>(present.thread);
}

[[noreturn]] void out_of_bounds(bool writes, uintptr_t address, size_t bytes) {
  listening = false;
  fail("out of bounds: " + access_of(writes, address, bytes));
}

// Where a cell of device memory is not as most are.
template <bool kWrites>
__attribute__((noinline)) void check_flags(const Cell& cell, uintptr_t address, size_t bytes) {
  const Quiet quiet;
  if (cell.flags & kRed) {
    out_of_bounds(kWrites, address, bytes);
  }
  if (cell.flags & kReleased) {
    fail("released: " + access_of(kWrites, address, bytes));
  }
  if (!kWrites && (cell.flags & kUnwritten)) {
    note("not initialised: " + access_of(false, address, bytes) + ", which nothing has written");
  }
  if ((cell.flags & kCounter) && !tickets.after_additions(address & ~uintptr_t{3})) {
    note("race: " + access_of(kWrites, address, bytes) + ", to which atomicAdd() is done in the same launch");
  }
}

__attribute__((noinline)) void note_unwritten(uintptr_t address, size_t bytes) {
  const Quiet quiet;
  note("not initialised: " + access_of(false, address, bytes) + ", which the block has not written, or not yet");
}

template <bool kShared, bool kWrites>
inline void touch(Cell& cell, uintptr_t address, size_t bytes) {
  if constexpr (kShared && !kWrites) {
    if (cell.written < present.block) {
      note_unwritten(address, bytes);
    }
  }
  if constexpr (!kShared) {
    if (cell.flags & (kRed | kReleased | kUnwritten | kCounter)) {
      check_flags<kWrites>(cell, address, bytes);
    }
  }
  check_write_before<kShared, kWrites>(cell, address, bytes);
  if constexpr (kWrites) {
    check_reads_before<kShared>(cell, address, bytes);
    cell.written = present.now;
    cell.writer = static_cast<uint16_t>(present.thread);
    cell.read = 0;
    cell.flags &= static_cast<uint8_t>(~kUnwritten);
  } else {
    record_read<kShared>(cell);
  }
}

template <bool kWrites>
__attribute__((noinline)) void access_shared(uintptr_t address, size_t bytes) {
  const uintptr_t offset = address - shared;
  if (offset >= shared_bytes || shared_bytes - offset < bytes) {
    out_of_bounds(kWrites, address, bytes);
  }
  visit_cells(
      offset, bytes, [](uintptr_t at) -> Cell& { return shared_words[at / 4]; },
      [](uintptr_t at) { return &shared_parts[at]; },
      [](Cell& cell, uintptr_t at, size_t n) { touch<true, kWrites>(cell, shared + at, n); });
}

template <bool kWrites>
__attribute__((noinline)) void access_device(uintptr_t address, size_t bytes) {
  pages.visit(address, bytes, touch<false, kWrites>);
}

// Whether a cell shows that a read of it is fine and need not be recorded: most of them are so.
template <bool kShared>
inline bool read_like_others(const Cell& cell) {
  if constexpr (kShared) {
    return cell.written >= present.block && cell.written < present.barrier && cell.readers == kWarpsOfABlock &&
        cell.read >= present.barrier && cell.flags == 0;
  } else {
    return cell.written < present.launch && cell.flags == 0 &&
        ((cell.readers == kBlocks && cell.read >= present.launch) ||
         (cell.readers == kWarpsOfABlock && cell.read >= present.barrier));
  }
}

// Whether all of `count` words are as most are, and so have been dealt with.
template <bool kShared, bool kWrites, size_t kCount>
inline bool touch_plain(Cell* cells, uintptr_t address) {
  if constexpr (!kWrites && kCount == 1) {
    if (read_like_others<kShared>(*cells)) {
      return true;
    }
  }
  for (size_t i = 0; i < kCount; ++i) {
    if (cells[i].flags & kSplit) {
      return false;
    }
  }
  for (size_t i = 0; i < kCount; ++i) {
    touch<kShared, kWrites>(cells[i], address + 4 * i, 4);
  }
  return true;
}

// Other threads of the host may run instrumented code meanwhile.
inline bool in_kernel() {
  return on_stack(__builtin_frame_address(0));
}

template <bool kWrites, size_t kBytes>
inline void access(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (!listening || on_stack(pointer) || !in_kernel()) {
    return;
  }
  if (address - arena < arena_bytes) {
    if constexpr (kBytes % 4 == 0) {
      const uintptr_t offset = address - shared;
      if (offset % 4 == 0 && offset < shared_bytes && shared_bytes - offset >= kBytes &&
          touch_plain<true, kWrites, kBytes / 4>(&shared_words[offset / 4], address)) {
        return;
      }
    }
    access_shared<kWrites>(address, kBytes);
  } else {
    if constexpr (kBytes % 4 == 0) {
      if (address % kBytes == 0 && // so that it lies in one page
          touch_plain<false, kWrites, kBytes / 4>(&pages.page(address).words[address % kPageBytes / 4], address)) {
        return;
      }
    }
    access_device<kWrites>(address, kBytes);
  }
}

template <bool kWrites>
void access_range(const void* pointer, size_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (!listening || on_stack(pointer) || !in_kernel()) {
    return;
  }
  if (address - arena < arena_bytes) {
    access_shared<kWrites>(address, bytes);
  } else {
    access_device<kWrites>(address, bytes);
  }
}

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
  arena = reinterpret_cast<uintptr_t>(where);
  arena_bytes = where_bytes;
  shared = reinterpret_cast<uintptr_t>(memory);
  shared_bytes = bytes;
  if (any_instrumented) {
    shared_words.assign(bytes / 4 + 1, {});
    shared_parts.resize(std::max(shared_parts.size(), bytes + 4));
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

namespace oes::emulation {

void thread_fence() {
  if (races::any_instrumented) {
    races::tickets.fence();
  }
}

unsigned atomic_add(unsigned* address, unsigned value) {
  if (races::listening && races::any_instrumented) {
    using namespace races;
    const auto at = reinterpret_cast<uintptr_t>(address);
    if (at % 4 != 0 || at - arena < arena_bytes || on_stack(address)) {
      fail("atomicAdd(): expected the address of an unsigned in device memory");
    }
    listening = false;
    pages.visit(at, 4, [](Cell& cell, uintptr_t a, size_t bytes) {
      if (cell.flags & (kRed | kReleased | kUnwritten)) {
        check_flags<true>(cell, a, bytes);
        check_flags<false>(cell, a, bytes);
      }
      check_write_before<false, true>(cell, a, bytes);
      check_reads_before<false>(cell, a, bytes);
      cell.flags |= kCounter;
    });
    tickets.add(at, run_index());
    listening = true;
  }
  const unsigned before = *address;
  *address = before + value;
  return before;
}

} // namespace oes::emulation

// What compilers call for every access of code they instrument for ThreadSanitizer, whose own library is not linked.
// Of the calls for C++ atomics there are none: kernels have no use for them.
#define OES_HOOK extern "C" __attribute__((visibility("hidden"), used)) void

#define OES_HOOKS_OF_SIZE(bytes)                                \
  OES_HOOK __tsan_read##bytes(const void* address) {            \
    ::oes::emulation::races::access<false, bytes>(address);     \
  }                                                             \
  OES_HOOK __tsan_write##bytes(const void* address) {           \
    ::oes::emulation::races::access<true, bytes>(address);      \
  }                                                             \
  OES_HOOK __tsan_unaligned_read##bytes(const void* address) {  \
    ::oes::emulation::races::access<false, bytes>(address);     \
  }                                                             \
  OES_HOOK __tsan_unaligned_write##bytes(const void* address) { \
    ::oes::emulation::races::access<true, bytes>(address);      \
  }

OES_HOOKS_OF_SIZE(1)
OES_HOOKS_OF_SIZE(2)
OES_HOOKS_OF_SIZE(4)
OES_HOOKS_OF_SIZE(8)
OES_HOOKS_OF_SIZE(16)

OES_HOOK __tsan_read_range(const void* address, size_t bytes) {
  ::oes::emulation::races::access_range<false>(address, bytes);
}
OES_HOOK __tsan_write_range(const void* address, size_t bytes) {
  ::oes::emulation::races::access_range<true>(address, bytes);
}
OES_HOOK __tsan_vptr_read(const void*) {}
OES_HOOK __tsan_vptr_update(void**, void*) {}
OES_HOOK __tsan_func_entry(void*) {}
OES_HOOK __tsan_func_exit() {}
OES_HOOK __tsan_init() {
  ::oes::emulation::races::any_instrumented = true;
}
