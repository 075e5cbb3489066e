// Memory of a thread for the strip it works on: grown once, then kept.
#pragma once

#include <cstddef>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace oes {

// An array that starts at a large page. Its elements are not initialised.
template <typename T>
class Aligned {
 public:
  Aligned() = default;
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  Aligned(Aligned&& other) noexcept : data_(other.data_), size_(other.size_) {
    other.data_ = nullptr;
    other.size_ = 0;
  }
  ~Aligned() {
    ::operator delete(data_, std::align_val_t(kAlignment));
  }

  // At least `size` elements; what was there is lost if it has to grow.
  T* reserve(size_t size) {
    if (size > size_) {
      T* larger = static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t(kAlignment)));
      ::operator delete(data_, std::align_val_t(kAlignment));
      data_ = larger;
#if defined(__linux__) && defined(MADV_HUGEPAGE)
      if (size * sizeof(T) >= kAlignment) {
        // Convolutions walk many planes side by side, each on pages of its own: small ones are soon too many.
        madvise(larger, size * sizeof(T) / kAlignment * kAlignment, MADV_HUGEPAGE);
      }
#endif
      size_ = size;
    }
    return data_;
  }

  T* data() const {
    return data_;
  }

 private:
  static constexpr size_t kAlignment = 2 << 20; // of a large page

  T* data_ = nullptr;
  size_t size_ = 0;
};

template <typename T>
T* workspace(size_t size) {
  thread_local Aligned<T> memory;
  return memory.reserve(size);
}

} // namespace oes
