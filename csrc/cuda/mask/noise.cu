#include "cuda/mask/noise.h"

#include "cuda/core/philox.h"
#include "cuda/mask/four_elements.h"

namespace oes::cuda::mask {
namespace {

__global__ void __launch_bounds__(kThreads) random_bits_kernel(const RandomBits a) {
  const PhiloxKey key(a.seed, a.step, a.stream);
  for (int64_t block = first_block(); 4 * block < a.numel; block += block_stride()) {
    const Four four(block, a.numel, false);
    const PhiloxWords words = philox_words(key, block);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < four.count) {
        a.words[four.at + i] = words.of[i];
      }
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) logistic_from_bits_kernel(const LogisticFromBits<T> a) {
  for (int64_t block = first_block(); 4 * block < a.numel; block += block_stride()) {
    const Four four(block, a.numel, false);
    for (int i = 0; i < four.count; ++i) {
      a.noise[four.at + i] = logistic<Rounded<T>>(static_cast<uint32_t>(a.words[four.at + i])).value;
    }
  }
}

} // namespace

void random_bits(const RandomBits& a, cudaStream_t stream) {
  if (a.numel > 0) {
    launch(random_bits_kernel, "random_bits", launch_over(a.numel, 1, stream), a);
  }
}

template <typename T>
void logistic_from_bits(const LogisticFromBits<T>& a, cudaStream_t stream) {
  if (a.numel > 0) {
    launch(logistic_from_bits_kernel<T>, "logistic_from_bits", launch_over(a.numel, 1, stream), a);
  }
}

template void logistic_from_bits(const LogisticFromBits<float>&, cudaStream_t);
template void logistic_from_bits(const LogisticFromBits<double>&, cudaStream_t);

} // namespace oes::cuda::mask
