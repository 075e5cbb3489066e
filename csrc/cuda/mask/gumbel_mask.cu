#include "cuda/mask/gumbel_mask.h"

#include "cuda/mask/four_elements.h"
#include "cuda/mask/relaxed_mask.h"

namespace oes::cuda::mask {
namespace {

template <typename T>
__global__ void __launch_bounds__(kThreads) gumbel_mask_kernel(const GumbelMask<T> a) {
  const int64_t network = blockIdx.z;
  const PhiloxKey key = key_of(a.noise, network);
  const Rounded<T> scale = a.inverse_temperature;
  const T* w0_row = a.w0 + network * a.w0_stride;
  const int64_t row = network * a.numel;
  for (int64_t block = first_block(); 4 * block < a.numel; block += block_stride()) {
    const Four four(block, a.numel, a.aligned);
    Rounded<T> w0[4], s[4], decay[4], m[4];
    load(s, a.logits + row, four);
    load(w0, w0_row, four);
    if (needs_decay(scale)) {
      decay_four(s, decay);
    }
    relaxed_four<Relaxed::kMask>(philox_words(key, block), s, decay, scale, m);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      m[i] = w0[i] * m[i];
    }
    store(a.masked + row, m, four);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) gumbel_mask_backward_kernel(const GumbelMaskBackward<T> a) {
  const int64_t network = blockIdx.z;
  const PhiloxKey key = key_of(a.noise, network);
  const Rounded<T> scale = a.inverse_temperature;
  const int64_t row = network * a.numel;
  for (int64_t block = first_block(); 4 * block < a.numel; block += block_stride()) {
    const Four four(block, a.numel, a.aligned);
    const PhiloxWords words = philox_words(key, block);
    Rounded<T> grad[4], s[4], decay[4], result[4];
    load(s, a.logits + row, four);
    load(grad, a.grad + row, four);
    if (needs_decay(scale)) {
      decay_four(s, decay);
    }
    if (a.grad_w0 != nullptr) {
      relaxed_four<Relaxed::kMask>(words, s, decay, scale, result);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        result[i] = grad[i] * result[i];
      }
      store(a.grad_w0 + row, result, four);
    }
    if (a.grad_logits != nullptr) {
      Rounded<T> w0[4];
      load(w0, a.w0 + network * a.w0_stride, four);
      relaxed_four<Relaxed::kVariance>(words, s, decay, scale, result);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        result[i] = grad[i] * w0[i] * result[i] * scale;
      }
      store(a.grad_logits + row, result, four);
    }
  }
}

} // namespace

template <typename T>
void gumbel_mask(GumbelMask<T> a, cudaStream_t stream) {
  if (a.numel == 0) {
    return;
  }
  a.aligned = aligned(a.numel, a.networks, sizeof(T), kVectorBytes, {a.w0, a.logits, a.masked});
  launch(gumbel_mask_kernel<T>, "gumbel_mask", launch_over(a.numel, a.networks, stream), a);
}

template <typename T>
void gumbel_mask_backward(GumbelMaskBackward<T> a, cudaStream_t stream) {
  if (a.numel == 0) {
    return;
  }
  a.aligned = aligned(a.numel, a.networks, sizeof(T), kVectorBytes, {a.grad, a.w0, a.logits, a.grad_w0, a.grad_logits});
  launch(gumbel_mask_backward_kernel<T>, "gumbel_mask_backward", launch_over(a.numel, a.networks, stream), a);
}

template void gumbel_mask(GumbelMask<float>, cudaStream_t);
template void gumbel_mask(GumbelMask<double>, cudaStream_t);
template void gumbel_mask_backward(GumbelMaskBackward<float>, cudaStream_t);
template void gumbel_mask_backward(GumbelMaskBackward<double>, cudaStream_t);

} // namespace oes::cuda::mask
