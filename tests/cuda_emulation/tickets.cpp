#include "tickets.h"

#include <algorithm>

#include "races.h"

namespace oes::emulation::races {

void Tickets::launch_begins() {
  counters_.clear();
}

void Tickets::block_begins() {
  seen_.clear();
}

void Tickets::fence() {
  fences_[present.thread] = {++present.now, present.barrier};
}

void Tickets::add(uintptr_t counter, uint32_t block) {
  Counter& c = counters_[counter];
  seen_.push_back({counter, c.additions, ++present.now, present.thread});
  Addition addition{c.additions++, 0, {}};
  for (int thread = 0; thread < 1024; ++thread) {
    const Fence& fence = fences_[thread];
    if (fence.time >= present.block && (thread == present.thread || fence.time < present.barrier)) {
      addition.all_before = std::max(addition.all_before, fence.barrier);
      addition.before.emplace_back(thread, fence.time);
    }
  }
  c.of_block[block].push_back(std::move(addition));
}

bool Tickets::sees(uint32_t block, uint32_t time, int thread) const {
  for (const Seen& seen : seen_) {
    if (!before_present(seen.time, seen.thread)) {
      continue;
    }
    const auto& of_block = counters_.at(seen.counter).of_block;
    const auto found = of_block.find(block);
    if (found == of_block.end()) {
      continue;
    }
    for (const Addition& addition : found->second) {
      if (addition.order >= seen.additions) {
        continue;
      }
      if (time < addition.all_before) {
        return true;
      }
      for (const auto& [by, before] : addition.before) {
        if (by == thread && time < before) {
          return true;
        }
      }
    }
  }
  return false;
}

bool Tickets::sees_all(uint32_t block) const {
  return std::any_of(seen_.begin(), seen_.end(), [&](const Seen& seen) {
    if (!before_present(seen.time, seen.thread)) {
      return false;
    }
    const auto& of_block = counters_.at(seen.counter).of_block;
    const auto fenced = std::count_if(of_block.begin(), of_block.end(), [&](const auto& entry) {
      return entry.first != block &&
          std::any_of(entry.second.begin(), entry.second.end(), [](const Addition& a) { return !a.before.empty(); });
    });
    return static_cast<uint32_t>(fenced) == block;
  });
}

bool Tickets::after_additions(uintptr_t counter) const {
  const auto found = counters_.find(counter);
  if (found == counters_.end()) {
    return true;
  }
  return std::any_of(seen_.begin(), seen_.end(), [&](const Seen& seen) {
    return seen.counter == counter && before_present(seen.time, seen.thread);
  });
}

} // namespace oes::emulation::races
