// How one block of a launch may see what another did: both have added to one counter, the other one first, after a
// __threadfence(). "This block is the last one" is told so.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

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

  std::unordered_map<uintptr_t, Counter> counters_;
  std::vector<Seen> seen_;
  Fence fences_[1024];
};

} // namespace oes::emulation::races
