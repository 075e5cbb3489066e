#include "tickets.h"

#include <algorithm>

#include "races.h"

namespace oes::emulation::races {

void Tickets::launch_begins() {
  counters_.clear();
}

void Tickets::block_begins() {
  seen_.clear();
  for (const int thread : fencing_) {
    fences_[thread] = {};
  }
  fencing_.clear();
}

void Tickets::fence() {
  Fences& fences = fences_[present.thread];
  if (fences.last.time == 0) {
    fencing_.push_back(present.thread);
  } else if (fences.last.time < present.barrier) {
    fences.settled = fences.last;
  }
  fences.last = {++present.now, present.barrier};
}

Tickets::Fence Tickets::fence_of(int thread) const {
  const Fences& fences = fences_[thread];
  return thread == present.thread || fences.last.time < present.barrier ? fences.last : fences.settled;
}

void Tickets::add(uintptr_t counter, uint32_t block) {
  Counter& c = counters_[counter];
  seen_.push_back({counter, c.additions, ++present.now, present.thread});
  Addition addition{c.additions++, 0, {}};
  for (const int thread : fencing_) {
    if (const Fence fence = fence_of(thread); fence.time != 0) {
      addition.all_before = std::max(addition.all_before, fence.barrier);
      addition.before.emplace_back(thread, fence.time);
    }
  }
  c.of_block[block].push_back(std::move(addition));
}

bool Tickets::acquired(const Seen& seen) const {
  const auto behind = [&](int thread) {
    const Fence fence = fence_of(thread);
    return fence.time > seen.time && (thread == seen.thread || fence.barrier > seen.time);
  };
  return before_present(seen.time, seen.thread) &&
      (behind(present.thread) || std::any_of(fencing_.begin(), fencing_.end(), behind));
}

bool Tickets::sees(uint32_t block, uint32_t time, int thread) const {
  for (const Seen& seen : seen_) {
    if (!acquired(seen)) {
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
    if (!acquired(seen)) {
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
