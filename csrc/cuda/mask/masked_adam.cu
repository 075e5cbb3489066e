#include "cuda/mask/masked_adam.h"

#include "cuda/mask/adam_step.h"
#include "cuda/mask/four_elements.h"

namespace oes::cuda::mask {
namespace {

OES_INLINE void load_mask(bool (&to)[4], const uint8_t* from, const Four& four, bool aligned) {
  if (aligned && four.count == 4) {
    const uint32_t bytes = *reinterpret_cast<const uint32_t*>(from + four.at);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to[i] = (bytes >> 8 * i & 0xFF) != 0;
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[i] = i < four.count && from[four.at + i] != 0;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) masked_adam_kernel(const MaskedAdam<T> a) {
  const int64_t network = blockIdx.z, row = network * a.numel;
  const Corrections<T> corrections = corrections_of(a.adam);
  const Rounded<T> beta1 = a.adam.beta1, beta1_rest = a.adam.beta1_rest;
  const Rounded<T> beta2 = a.adam.beta2, beta2_rest = a.adam.beta2_rest;
  for (int64_t block = first_block(); 4 * block < a.numel; block += block_stride()) {
    const Four four(block, a.numel, a.aligned);
    Rounded<T> g[4], weights[4], first[4], second[4];
    load(g, a.grad + row, four);
    load(weights, a.weights + row, four);
    load(first, a.exp_avg + row, four);
    load(second, a.exp_avg_sq + row, four);
    if (a.mask != nullptr) { // not a product: NaN that is not kept counts for nothing
      bool kept[4];
      load_mask(kept, a.mask + network * a.mask_stride, four, a.mask_aligned);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        g[i] = kept[i] ? g[i] : Rounded<T>(T(0));
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      first[i] = first[i] * beta1 + g[i] * beta1_rest;
      second[i] = second[i] * beta2 + g[i] * g[i] * beta2_rest;
      weights[i] = weights[i] - adam_step<T>(first[i], second[i], corrections, a.adam.eps);
    }
    store(a.exp_avg + row, first, four);
    store(a.exp_avg_sq + row, second, four);
    store(a.weights + row, weights, four);
  }
}

} // namespace

template <typename T>
void masked_adam(MaskedAdam<T> a, cudaStream_t stream) {
  if (a.numel == 0) {
    return;
  }
  a.aligned = aligned(a.numel, a.networks, sizeof(T), kVectorBytes, {a.weights, a.grad, a.exp_avg, a.exp_avg_sq});
  a.mask_aligned = aligned(a.numel, a.networks, 1, sizeof(uint32_t), {a.mask});
  launch(masked_adam_kernel<T>, "masked_adam", launch_over(a.numel, a.networks, stream), a);
}

template void masked_adam(MaskedAdam<float>, cudaStream_t);
template void masked_adam(MaskedAdam<double>, cudaStream_t);

} // namespace oes::cuda::mask
