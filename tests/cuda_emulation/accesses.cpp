// Every access of a kernel to memory, held against those before it.
#include "fibers.h"
#include "reports.h"

namespace oes::emulation::races {
namespace {

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

// Where a cell of device memory is not as most are.
template <bool kWrites>
__attribute__((noinline)) void check_flags(const Cell& cell, uintptr_t address, size_t bytes) {
  const Quiet quiet;
  if (cell.flags & kRed) {
    fail_at("out of bounds", kWrites, address, bytes);
  }
  if (cell.flags & kReleased) {
    fail_at("released", kWrites, address, bytes);
  }
  if (!kWrites && (cell.flags & kUnwritten)) {
    note_unwritten(address, bytes);
  }
  if ((cell.flags & kCounter) && !tickets.after_additions(address & ~uintptr_t{3})) {
    note_race_with_atomics(kWrites, address, bytes);
  }
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
  const uintptr_t offset = address - shared.begin;
  if (offset >= shared.bytes || shared.bytes - offset < bytes) {
    fail_at("out of bounds", kWrites, address, bytes);
  }
  visit_cells(
      offset, bytes, [](uintptr_t at) -> Cell& { return shared.words[at / 4]; },
      [](uintptr_t at) { return &shared.parts[at]; },
      [](Cell& cell, uintptr_t at, size_t n) { touch<true, kWrites>(cell, shared.begin + at, n); });
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
  if (address - shared.arena < shared.arena_bytes) {
    if constexpr (kBytes % 4 == 0) {
      const uintptr_t offset = address - shared.begin;
      if (offset % 4 == 0 && offset < shared.bytes && shared.bytes - offset >= kBytes &&
          touch_plain<true, kWrites, kBytes / 4>(&shared.words[offset / 4], address)) {
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
  if (address - shared.arena < shared.arena_bytes) {
    access_shared<kWrites>(address, bytes);
  } else {
    access_device<kWrites>(address, bytes);
  }
}

} // namespace
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
    if (at % 4 != 0 || at - shared.arena < shared.arena_bytes || on_stack(address)) {
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
