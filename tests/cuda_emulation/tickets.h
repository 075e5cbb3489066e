// How one block of a launch may see what another did: both have added to one counter, the other one first and after a
// __threadfence(), this one before another __threadfence(). "This block is the last one" is told so.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "order.h"

namespace oes::emulation::races {

class Tickets {
 public:
  void launch_begins();
  void block_begins();
  // By the thread that runs.
  void fence();
  // `block`: how many blocks have run before it in this launch.
  void add(uintptr_t counter, uint32_t block);

  // Whether the thread that runs may see what a thread of another block did at that time.
  bool sees(uint32_t block, uint32_t time, int thread) const;
  // Whether it may see what all blocks did that have run: `block` is how many.
  bool sees_all(uint32_t block) const;
  // Whether it comes after an addition of its own block to the counter, or there are none.
  bool after_additions(uintptr_t counter) const;

 private:
  // What a block had done when it added to a counter, as far as others see it.
  struct Addition {
    uint32_t order; // of the counter's additions
    uint32_t all_before; // what any thread did before that time
    std::vector<std::pair<int, uint32_t>> before; // what a thread did before that time
  };
  struct Counter {
    uint32_t additions = 0;
    std::unordered_map<uint32_t, std::vector<Addition>> of_block;
  };
  // An addition by the block that runs.
  struct Seen {
    uintptr_t counter;
    uint32_t additions; // before it
    uint32_t time;
    int thread;
  };
  struct Fence {
    uint32_t time = 0, barrier = 0; // the last barrier before it
  };
  // Of a thread of the block that runs: its last one, and the last one that a barrier has followed.
  struct Fences {
    Fence last, settled;
  };

  // The last fence of a thread that the thread that runs comes after; its time is 0 if there is none.
  Fence fence_of(int thread) const;
  // Whether the thread that runs comes after the addition and a fence behind it.
  bool acquired(const Seen& seen) const;

  std::unordered_map<uintptr_t, Counter> counters_;
  std::vector<Seen> seen_;
  std::vector<int> fencing_; // threads of the block that have called __threadfence()
  Fences fences_[kMostThreads];
};

} // namespace oes::emulation::races
