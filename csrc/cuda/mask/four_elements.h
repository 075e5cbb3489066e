// How the kernels of the masks go over their elements: a thread takes four at a time, those of one counter of Philox,
// and strides over the grid; the networks are the outermost dimension of the grid. Device code.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "cuda/core/platform.h"
#include "cuda/core/rounded.h"

namespace oes::cuda::mask {

constexpr int kThreads = 256;
// A thread takes the elements of several counters beyond; the blocks that one GPU runs at a time are fewer.
constexpr int64_t kMostBlocks = 4096;
constexpr int64_t kMostNetworks = 65535; // of the last dimension of a grid

inline int64_t blocks_of(int64_t numel) {
  const int64_t elements = 4 * kThreads;
  return std::min((numel + elements - 1) / elements, kMostBlocks);
}

inline Launch launch_over(int64_t numel, int64_t networks, cudaStream_t stream, size_t shared_bytes = 0) {
  if (networks < 1 || networks > kMostNetworks) {
    throw std::invalid_argument(
        "networks: expected 1 to " + std::to_string(kMostNetworks) + ", got " + std::to_string(networks));
  }
  const dim3 grid(static_cast<unsigned>(blocks_of(numel)), 1, static_cast<unsigned>(networks));
  return {grid, dim3(kThreads, 1, 1), shared_bytes, stream};
}

// Whether four elements can be read at once everywhere: the rows of all networks begin at a multiple of `bytes`.
inline bool aligned(
    int64_t numel, int64_t networks, size_t element, size_t bytes, std::initializer_list<const void*> arrays) {
  const bool rows = networks == 1 || static_cast<size_t>(numel) * element % bytes == 0;
  return rows && std::all_of(arrays.begin(), arrays.end(), [=](const void* array) {
           return reinterpret_cast<uintptr_t>(array) % bytes == 0;
         });
}

constexpr size_t kVectorBytes = 16;

// The elements at .. at + count - 1 of an array; at once where `whole`.
struct Four {
  int64_t at;
  int count;
  bool whole;

  OES_INLINE Four(int64_t block, int64_t numel, bool aligned_)
      : at(4 * block), count(numel - at < 4 ? static_cast<int>(numel - at) : 4), whole(aligned_ && count == 4) {}
};

OES_INLINE int64_t first_block() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}
OES_INLINE int64_t block_stride() {
  return static_cast<int64_t>(gridDim.x) * kThreads;
}

OES_INLINE void load(Rounded<float> (&to)[4], const float* from, const Four& four) {
  if (four.whole) {
    const float4 v = *reinterpret_cast<const float4*>(from + four.at);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[i] = i < four.count ? from[four.at + i] : 0.0f;
  }
}

OES_INLINE void load(Rounded<double> (&to)[4], const double* from, const Four& four) {
  if (four.whole) {
    const double2* pairs = reinterpret_cast<const double2*>(from + four.at);
    const double2 low = pairs[0], high = pairs[1];
    to[0] = low.x, to[1] = low.y, to[2] = high.x, to[3] = high.y;
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[i] = i < four.count ? from[four.at + i] : 0.0;
  }
}

OES_INLINE void store(float* to, const Rounded<float> (&from)[4], const Four& four) {
  if (four.whole) {
    *reinterpret_cast<float4*>(to + four.at) = make_float4(from[0].value, from[1].value, from[2].value, from[3].value);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < four.count) {
      to[four.at + i] = from[i].value;
    }
  }
}

OES_INLINE void store(double* to, const Rounded<double> (&from)[4], const Four& four) {
  if (four.whole) {
    double2* pairs = reinterpret_cast<double2*>(to + four.at);
    pairs[0] = make_double2(from[0].value, from[1].value);
    pairs[1] = make_double2(from[2].value, from[3].value);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < four.count) {
      to[four.at + i] = from[i].value;
    }
  }
}

} // namespace oes::cuda::mask
