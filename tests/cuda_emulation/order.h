// In which order things run.
#pragma once

#include <cstdint>
#include <utility>

namespace oes::emulation {

constexpr int kMostThreads = 1024; // of a block

// xorshift64*: the same everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u | 1) {}

  uint32_t below(uint32_t bound) {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<uint32_t>((state_ * 0x2545F4914F6CDD1Du >> 32) * bound >> 32);
  }

  template <typename T>
  void shuffle(T* items, uint32_t count) {
    for (uint32_t i = count; i > 1; --i) {
      std::swap(items[i - 1], items[below(i)]);
    }
  }

 private:
  uint64_t state_;
};

// Threads that may run, the next one first.
class Ready {
 public:
  bool empty() const {
    return count_ == 0;
  }
  int take() {
    const int thread = ring_[first_];
    first_ = (first_ + 1) % kMostThreads;
    --count_;
    return thread;
  }
  void append(int thread) {
    ring_[(first_ + count_++) % kMostThreads] = static_cast<uint16_t>(thread);
  }
  void prepend(int thread) {
    first_ = (first_ + kMostThreads - 1) % kMostThreads;
    ring_[first_] = static_cast<uint16_t>(thread);
    ++count_;
  }
  void clear() {
    count_ = 0;
  }

 private:
  uint16_t ring_[kMostThreads];
  uint32_t first_ = 0, count_ = 0;
};

} // namespace oes::emulation
