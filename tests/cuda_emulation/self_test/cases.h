// What tests/test_cuda_emulation.py runs by name, one in a process.
#pragma once

#include <cstdio>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/core/platform.h"

namespace oes::self_test {

struct Case {
  Case(const char* name, void (*run)());

  const char* name;
  void (*run)();
  Case* next;
};

// Defines a case: OES_CASE(name) { ... }
#define OES_CASE(name)                 \
  void name();                         \
  const Case name##_case(#name, name); \
  void name()

inline void expect(bool condition, const std::string& what) {
  if (!condition) {
    throw std::logic_error("expected " + what);
  }
}

// Device memory with `values` in it.
template <typename T>
class Buffer {
 public:
  explicit Buffer(size_t count) : count_(count), data_(static_cast<T*>(cuda::device_malloc(count * sizeof(T)))) {}
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size()) {
    cuda::copy_to_device(data_, values.data(), count_ * sizeof(T));
  }
  ~Buffer() {
    cuda::device_free(data_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* get() const {
    return data_;
  }
  std::vector<T> values() const {
    return {data_, data_ + count_};
  }

 private:
  size_t count_;
  T* data_;
};

} // namespace oes::self_test
