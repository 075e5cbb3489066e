// The one file that knows whether nvcc compiles for a device, or a C++ compiler for the emulation under
// tests/cuda_emulation, which gives the same names.
//
// A kernel takes one argument, a plain struct, and uses dynamic shared memory alone. Everything is launched on the
// stream it is given, waits for nothing and allocates nothing, so that it can be recorded in a CUDA graph.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#ifdef OES_EMULATE_CUDA
#include "cuda_emulation.h"
#else
#include <cuda_runtime.h>
#ifndef __CUDACC__
#include "cuda/core/device_names.h"
#endif
#endif

namespace oes::cuda {

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  cudaStream_t stream;
};

// What lies behind so many bytes of shared memory, aligned to sixteen.
__host__ __device__ constexpr size_t aligned(size_t bytes) {
  return (bytes + 15) / 16 * 16;
}

#ifdef OES_EMULATE_CUDA

// Declares `unsigned char* name`: the dynamic shared memory of the block.
#define OES_SHARED(name) unsigned char* name = ::oes::emulation::shared_memory()

template <typename Args>
void launch(void (*kernel)(Args), const char* name, const Launch& l, const Args& args) {
  ::oes::emulation::run(name, l.grid, l.block, l.shared_bytes, [&] { kernel(args); });
}

inline void* device_malloc(size_t bytes) {
  return ::oes::emulation::allocate(bytes);
}
inline void device_free(void* address) {
  ::oes::emulation::release(address);
}
inline void copy_to_device(void* to, const void* from, size_t bytes) {
  ::oes::emulation::copy(to, from, bytes);
}
inline void set_zero(void* address, size_t bytes, cudaStream_t) {
  ::oes::emulation::fill(address, 0, bytes);
}

// Streaming multiprocessors of a device, and the bytes of shared memory of each: those of an H100, so that the plans
// are the ones made for it.
inline int processors_of(int) {
  return 132;
}
inline int shared_bytes_of(int) {
  return 228 * 1024;
}

// The device of the calls made while it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int) {}
};

#else

#define OES_SHARED(name)                                             \
  extern __shared__ __align__(16) unsigned char oes_shared_memory[]; \
  unsigned char* name = oes_shared_memory

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    cudaGetLastError(); // else the next call reports it once more
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
  }
}

inline int attribute_of(int device, cudaDeviceAttr attribute) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  return value;
}

template <typename Args>
void launch(void (*kernel)(Args), const char* name, const Launch& l, const Args& args) {
  constexpr size_t kWithoutAsking = 48 * 1024;
  if (l.shared_bytes > kWithoutAsking) {
    // The most that the device has, whatever this launch takes: the limit is the kernel's, and another thread may set
    // it between here and the launch.
    int device = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    const int most = attribute_of(device, cudaDevAttrMaxSharedMemoryPerBlockOptin);
    check(
        cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, most),
        name);
  }
  void* arguments[] = {const_cast<Args*>(&args)};
  check(
      cudaLaunchKernel(reinterpret_cast<const void*>(kernel), l.grid, l.block, arguments, l.shared_bytes, l.stream),
      name);
}

inline void* device_malloc(size_t bytes) {
  void* address = nullptr;
  check(cudaMalloc(&address, bytes), "cudaMalloc");
  return address;
}
inline void device_free(void* address) {
  cudaFree(address);
}
inline void copy_to_device(void* to, const void* from, size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
  // From pageable memory that returns before the bytes have arrived, and PyTorch's streams do not wait for this one.
  check(cudaStreamSynchronize(cudaStreamLegacy), "cudaMemcpy");
}
inline void set_zero(void* address, size_t bytes, cudaStream_t stream) {
  check(cudaMemsetAsync(address, 0, bytes, stream), "cudaMemsetAsync");
}

// Streaming multiprocessors of a device, and the bytes of shared memory of each.
inline int processors_of(int device) {
  return attribute_of(device, cudaDevAttrMultiProcessorCount);
}
inline int shared_bytes_of(int device) {
  return attribute_of(device, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
}

// The device of the calls made while it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    changed_ = before_ != device; // setting a device makes a context there, which takes memory
    if (changed_) {
      check(cudaSetDevice(device), "cudaSetDevice");
    }
  }
  ~DeviceGuard() {
    if (changed_) {
      cudaSetDevice(before_);
    }
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

#endif

} // namespace oes::cuda
