#include "cuda/conv/flat_weights.h"

namespace oes::cuda::conv {
namespace {

constexpr int kThreads = 256;

// The segment that value i lies in.
template <typename T>
__device__ __forceinline__ int segment_of(const FlatWeightsArgs<T>& a, int64_t i) {
  int low = a.first_segment, high = a.first_segment + a.segment_count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (a.segments[middle].begin <= i) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) pack_weights_kernel(const FlatWeightsArgs<T> a) {
  const int64_t network = blockIdx.y;
  const int64_t i = a.begin + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= a.end) {
    return;
  }
  const int from = a.index[i];
  const T value = from < 0 ? T(0) : a.weights[network * a.stride + from] * a.segments[segment_of(a, i)].scale;
  a.packed[network * a.packed_stride + i] = value;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) unpack_weight_grads_kernel(const FlatWeightsArgs<T> a) {
  const int64_t network = blockIdx.y;
  const int64_t i = a.begin + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= a.end || a.index[i] < 0) {
    return;
  }
  const WeightSegment<T>& segment = a.segments[segment_of(a, i)];
  const T* from = segment.partials + network * segment.slots * segment.slot_stride + (i - segment.begin);
  T sum = T(0);
#pragma unroll 8
  for (int slot = 0; slot < segment.slots; ++slot) {
    sum += from[slot * segment.slot_stride];
  }
  a.weights[network * a.stride + a.index[i]] += segment.scale * sum;
}

template <typename T>
Launch where(const FlatWeightsArgs<T>& a, int networks, cudaStream_t stream) {
  return {
      dim3(static_cast<unsigned>((a.end - a.begin + kThreads - 1) / kThreads), networks), dim3(kThreads), 0, stream};
}

} // namespace

template <typename T>
void pack_weights(const FlatWeightsArgs<T>& a, int networks, cudaStream_t stream) {
  if (a.end > a.begin) {
    launch(pack_weights_kernel<T>, "pack_weights", where(a, networks, stream), a);
  }
}

template <typename T>
void unpack_weight_grads(const FlatWeightsArgs<T>& a, int networks, cudaStream_t stream) {
  if (a.end > a.begin) {
    launch(unpack_weight_grads_kernel<T>, "unpack_weight_grads", where(a, networks, stream), a);
  }
}

template void pack_weights(const FlatWeightsArgs<float>&, int, cudaStream_t);
template void pack_weights(const FlatWeightsArgs<double>&, int, cudaStream_t);
template void unpack_weight_grads(const FlatWeightsArgs<float>&, int, cudaStream_t);
template void unpack_weight_grads(const FlatWeightsArgs<double>&, int, cudaStream_t);

} // namespace oes::cuda::conv
