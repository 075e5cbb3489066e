// Between the flat vector of weights and the lists of taps: weights as the kernels read them, and their gradients back.
#pragma once

#include <cstdint>

#include "cuda/core/platform.h"

namespace oes::cuda::conv {

// A convolution's piece of a table over all convolutions.
template <typename T>
struct WeightSegment {
  int64_t begin; // of its values in the table; ends where the next begins
  T scale;
  // unpack: [networks, slots, slot_stride]
  const T* partials;
  int slots;
  int64_t slot_stride;
};

template <typename T>
struct FlatWeightsArgs {
  const int* index; // [count]: into the flat vector, or -1
  const WeightSegment<T>* segments; // [segment_count] and one more, whose begin is the end
  int first_segment, segment_count;
  int64_t begin, end; // of the values
  T* weights; // [networks, stride], flat
  int64_t stride;
  T* packed; // [networks, packed_stride]
  int64_t packed_stride;
};

// packed[i] = scale * weights[index[i]], zero for -1.
template <typename T>
void pack_weights(const FlatWeightsArgs<T>& a, int networks, cudaStream_t stream);

// weights[index[i]] += scale * the sum of the partials of i, in their order.
template <typename T>
void unpack_weight_grads(const FlatWeightsArgs<T>& a, int networks, cudaStream_t stream);

} // namespace oes::cuda::conv
