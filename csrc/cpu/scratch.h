// Memory of a thread for the strip it works on: grown once, then kept.
#pragma once

#include <cstddef>
#include <new>

namespace oes {

// An array that starts at a cache line. Its elements are not initialised.
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
    ::operator delete(data_, std::align_val_t(64));
  }

  // At least `size` elements; what was there is lost if it has to grow.
  T* reserve(size_t size) {
    if (size > size_) {
      T* larger = static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t(64)));
      ::operator delete(data_, std::align_val_t(64));
      data_ = larger;
      size_ = size;
    }
    return data_;
  }

  T* data() const {
    return data_;
  }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

template <typename T>
T* scratch(size_t size) {
  thread_local Aligned<T> memory;
  return memory.reserve(size);
}

} // namespace oes
