// CUDA C++ on the host: what csrc/cuda/core/platform.h needs in place of cuda_runtime.h, for tests on machines without
// a GPU. Kernels run as ordinary functions, once a thread; see README.md in this folder.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};

inline int2 make_int2(int x, int y) {
  return {x, y};
}
inline int4 make_int4(int x, int y, int z, int w) {
  return {x, y, z, w};
}
inline uint2 make_uint2(unsigned x, unsigned y) {
  return {x, y};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) {
  return {x, y, z};
}
inline float2 make_float2(float x, float y) {
  return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}
inline double2 make_double2(double x, double y) {
  return {x, y};
}

struct CUstream_st;
using cudaStream_t = CUstream_st*;

// Of the thread that runs.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace oes::emulation {

// Runs body() once for every thread of every block: blocks one after the other, in a shuffled order, the threads of a
// block in an order that is shuffled anew at every barrier, by the seed OES_EMULATION_SEED (0 unless set).
//
// Throws std::runtime_error that names the kernel: for a launch that hardware refuses, barriers at which not all
// threads arrive, what a thread throws and, where the kernels are instrumented, what the race detector found.
void run_blocks(
    const char* name, dim3 grid, dim3 block, size_t shared_bytes, void (*call)(const void*), const void* body);

template <typename Body>
void run(const char* name, dim3 grid, dim3 block, size_t shared_bytes, const Body& body) {
  run_blocks(name, grid, block, shared_bytes, [](const void* b) { (*static_cast<const Body*>(b))(); }, &body);
}

// The shared memory of the block that runs: 128-byte aligned, every byte 0xFF when the block starts.
unsigned char* shared_memory();

// Device memory. Every byte is 0xFF at first; what a kernel does outside of it, or reads before it is written, is found
// by the race detector and by AddressSanitizer.
void* allocate(size_t bytes);
void release(void* address);
void copy(void* to, const void* from, size_t bytes);
void fill(void* address, int value, size_t bytes);

// Waits for all threads of the block.
void block_barrier();

// What lanes of a warp do together, once all of them that live have come: exchange() gets the address that each lane
// of `lanes` gave, 0 for others.
struct Collective {
  const char* name;
  void (*exchange)(void* const (&operands)[32], uint32_t lanes);
};
void warp_collective(const Collective& what, uint32_t mask, void* operand);

void thread_fence();
unsigned atomic_add(unsigned* address, unsigned value);

// See csrc/cuda/core/mma.h.
uint32_t to_tf32(float x);
void mma_tf32_16x8x8(float* d, const uint32_t* a, const uint32_t* b);

template <typename T>
struct Shuffle {
  T value;
  int source; // a lane
};

template <typename T>
void exchange_values(void* const (&operands)[32], uint32_t lanes) {
  T values[32];
  std::memset(values, 0xFF, sizeof(values)); // of lanes that take no part
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes >> lane & 1) {
      values[lane] = static_cast<Shuffle<T>*>(operands[lane])->value;
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes >> lane & 1) {
      auto& shuffle = *static_cast<Shuffle<T>*>(operands[lane]);
      shuffle.value = values[shuffle.source];
    }
  }
}

inline int lane_index() {
  return static_cast<int>((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32);
}

template <typename T>
T shuffle(const char* name, uint32_t mask, T value, int source) {
  static_assert(std::is_arithmetic_v<T>);
  const Collective what{name, exchange_values<T>};
  Shuffle<T> operand{value, source};
  warp_collective(what, mask, &operand);
  return operand.value;
}

} // namespace oes::emulation

inline void __syncthreads() {
  ::oes::emulation::block_barrier();
}

void __syncwarp(unsigned mask = 0xffffffffu);
unsigned __ballot_sync(unsigned mask, int predicate);

// Lanes outside of the segment of `width` lanes wrap round.
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = ::oes::emulation::lane_index();
  return ::oes::emulation::shuffle("__shfl_sync", mask, value, (lane & ~(width - 1)) | (source & (width - 1)));
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  const int lane = ::oes::emulation::lane_index(), source = lane ^ bits;
  // As hardware has it: from an earlier segment it reads, from a later one it does not.
  return ::oes::emulation::shuffle("__shfl_xor_sync", mask, value, source <= (lane | (width - 1)) ? source : lane);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  const int lane = ::oes::emulation::lane_index(), source = lane + static_cast<int>(distance);
  return ::oes::emulation::shuffle("__shfl_down_sync", mask, value, source <= (lane | (width - 1)) ? source : lane);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32) {
  const int lane = ::oes::emulation::lane_index(), source = lane - static_cast<int>(distance);
  return ::oes::emulation::shuffle("__shfl_up_sync", mask, value, source >= (lane & ~(width - 1)) ? source : lane);
}

inline void __threadfence() {
  ::oes::emulation::thread_fence();
}
inline unsigned atomicAdd(unsigned* address, unsigned value) {
  return ::oes::emulation::atomic_add(address, value);
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}

inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
inline int __popc(unsigned x) {
  return std::popcount(x);
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __clz(int x) {
  return std::countl_zero(static_cast<unsigned>(x));
}
inline unsigned __float_as_uint(float x) {
  return std::bit_cast<unsigned>(x);
}
inline float __uint_as_float(unsigned x) {
  return std::bit_cast<float>(x);
}
inline float __int_as_float(int x) {
  return std::bit_cast<float>(x);
}
inline int __float_as_int(float x) {
  return std::bit_cast<int>(x);
}
inline float __fmaf_rn(float a, float b, float c) {
  return std::fmaf(a, b, c);
}
inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fsub_rn(float a, float b) {
  return a - b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __fsqrt_rn(float x) {
  return std::sqrt(x);
}
inline double __fma_rn(double a, double b, double c) {
  return std::fma(a, b, c);
}
inline double __dmul_rn(double a, double b) {
  return a * b;
}
inline double __dadd_rn(double a, double b) {
  return a + b;
}
inline double __ddiv_rn(double a, double b) {
  return a / b;
}
inline double __dsqrt_rn(double x) {
  return std::sqrt(x);
}
inline float rsqrtf(float x) {
  return 1.0f / std::sqrt(x);
}
inline double rsqrt(double x) {
  return 1.0 / std::sqrt(x);
}

// Both of one type: CUDA would convert mixed ones, often to what was not meant.
template <typename T>
  requires std::is_arithmetic_v<T>
T min(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    return std::fmin(a, b);
  } else {
    return b < a ? b : a;
  }
}
template <typename T>
  requires std::is_arithmetic_v<T>
T max(T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    return std::fmax(a, b);
  } else {
    return a < b ? b : a;
  }
}
