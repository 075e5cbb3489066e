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

// See below; here one launch follows the other.
class SideStream {
 public:
  cudaStream_t follow(cudaStream_t main) {
    return main;
  }
  void mark() {}
  void join(cudaStream_t) {}
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

// A second stream of the device on which it is made, for launches that others need not wait for. In a recorded graph
// they are a branch.
class SideStream {
 public:
  SideStream() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
    for (cudaEvent_t* event : {&followed_, &marked_}) {
      check(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "cudaEventCreate");
    }
  }
  ~SideStream() {
    for (cudaEvent_t event : {followed_, marked_}) {
      if (event != nullptr) {
        cudaEventDestroy(event);
      }
    }
    cudaStreamDestroy(stream_);
  }
  SideStream(const SideStream&) = delete;
  SideStream& operator=(const SideStream&) = delete;

  // The stream: what is launched on it next comes after all that has been launched on `main`.
  cudaStream_t follow(cudaStream_t main) {
    check(cudaEventRecord(followed_, main), "cudaEventRecord");
    check(cudaStreamWaitEvent(stream_, followed_, 0), "cudaStreamWaitEvent");
    return stream_;
  }
  // Marks what has been launched on it so far.
  void mark() {
    check(cudaEventRecord(marked_, stream_), "cudaEventRecord");
  }
  // What is launched on `main` next comes after what was marked last.
  void join(cudaStream_t main) {
    check(cudaStreamWaitEvent(main, marked_, 0), "cudaStreamWaitEvent");
  }

 private:
  cudaStream_t stream_ = nullptr;
  cudaEvent_t followed_ = nullptr, marked_ = nullptr;
};

#endif

// Starts a copy of kCount values from device to shared memory that needs no registers; see copies_arrive. Both
// addresses are multiples of the bytes copied: 4, 8 or 16.
template <int kCount, typename T>
__device__ __forceinline__ void start_copy(T* to, const T* from) {
  constexpr int kBytes = kCount * sizeof(T);
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#ifdef OES_EMULATE_CUDA
  for (int i = 0; i < kCount; ++i) {
    to[i] = from[i];
  }
#else
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address), "l"(from), "n"(kBytes) : "memory");
  }
#endif
}

// Waits for the copies that this thread has started; those of others are there behind the next barrier.
__device__ __forceinline__ void copies_arrive() {
#ifndef OES_EMULATE_CUDA
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

} // namespace oes::cuda
