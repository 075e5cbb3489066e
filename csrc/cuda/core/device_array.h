// Memory on the device.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include "cuda/core/platform.h"

namespace oes::cuda {

// Elements on the device, uninitialised or copied from the host.
template <typename T>
class DeviceArray {
 public:
  DeviceArray() = default;
  explicit DeviceArray(size_t size) : size_(size) {
    if (size > 0) {
      data_ = static_cast<T*>(device_malloc(size * sizeof(T)));
    }
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    if (size_ > 0) {
      copy_to_device(data_, values.data(), size_ * sizeof(T));
    }
  }
  ~DeviceArray() {
    if (data_ != nullptr) {
      device_free(data_);
    }
  }
  DeviceArray(DeviceArray&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  DeviceArray& operator=(DeviceArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  T* data() {
    return data_;
  }
  const T* data() const {
    return data_;
  }
  size_t size() const {
    return size_;
  }

 private:
  T* data_ = nullptr;
  size_t size_ = 0;
};

} // namespace oes::cuda
