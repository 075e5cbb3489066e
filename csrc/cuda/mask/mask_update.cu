#include "cuda/mask/mask_update.h"

#include "common/mask_kl.h"
#include "cuda/mask/adam_step.h"
#include "cuda/mask/four_elements.h"
#include "cuda/mask/relaxed_mask.h"

namespace oes::cuda::mask {
namespace {

enum class Kl { kNone, kGradient, kGradientAndValue };

constexpr int kWarp = 32, kWarps = kThreads / kWarp;

// The sum over the block, in one order, to thread 0. `of_warps` has kWarps elements.
OES_INLINE double block_sum(double value, double* of_warps) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_down_sync(0xFFFFFFFFu, value, distance);
  }
  if (threadIdx.x % kWarp == 0) {
    of_warps[threadIdx.x / kWarp] = value;
  }
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0) {
    for (int warp = 0; warp < kWarps; ++warp) {
      sum += of_warps[warp];
    }
  }
  __syncthreads(); // of_warps is free again
  return sum;
}

// The sums of all blocks of a network, added by the block that comes last, in one order whichever it is.
template <typename T>
OES_INLINE void add_kl_value(const MaskUpdate<T>& a, int64_t network, double of_thread) {
  OES_SHARED(shared);
  double* of_warps = reinterpret_cast<double*>(shared);
  unsigned* is_last = reinterpret_cast<unsigned*>(of_warps + kWarps);
  double* sums = a.kl_sums + network * gridDim.x;
  const double of_block = block_sum(of_thread, of_warps);
  if (threadIdx.x == 0) {
    sums[blockIdx.x] = of_block;
    __threadfence();
    *is_last = atomicAdd(a.kl_tickets + network, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (*is_last == 0) {
    return;
  }
  __threadfence();
  const volatile double* written = sums; // by other blocks: not from a cache of this one
  double of_blocks = 0;
  for (unsigned block = threadIdx.x; block < gridDim.x; block += kThreads) {
    of_blocks += written[block];
  }
  const double sum = block_sum(of_blocks, of_warps);
  if (threadIdx.x == 0) {
    a.kl_value[network] = static_cast<T>(sum);
    a.kl_tickets[network] = 0;
  }
}

template <typename T, Kl kKl>
__global__ void __launch_bounds__(kThreads) mask_update_kernel(const MaskUpdate<T> a) {
  constexpr bool has_gradient = kKl != Kl::kNone, has_value = kKl == Kl::kGradientAndValue;
  using R = Rounded<T>;
  const int64_t network = blockIdx.z, row = network * a.numel;
  const PhiloxKey key = key_of(a.noise, network);
  const Corrections<T> corrections = corrections_of(a.adam);
  const R scale = a.inverse_temperature, kl = a.kl, kl_offset = a.kl_offset, kl_eps = static_cast<T>(kKlEps);
  const R log_density = a.log_density, log_rest = a.log_rest;
  const R beta1_rest = a.adam.beta1_rest, beta2 = a.adam.beta2, beta2_rest = a.adam.beta2_rest;
  double kl_sum = 0;
  for (int64_t block = first_block(); 4 * block < a.numel; block += block_stride()) {
    const Four four(block, a.numel, a.aligned);
    R s[4], decay[4], grad[4], w0[4], first[4], second[4], variance[4];
    load(s, a.logits + row, four);
    load(grad, a.grad + row, four);
    load(w0, a.w0 + network * a.w0_stride, four);
    load(first, a.exp_avg + row, four);
    load(second, a.exp_avg_sq + row, four);
    if (has_gradient || needs_decay(scale)) {
      decay_four(s, decay);
    }
    relaxed_four<Relaxed::kVariance>(philox_words(key, block), s, decay, scale, variance);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      R g = grad[i] * w0[i] * variance[i] * scale;
      if constexpr (has_gradient) {
        const auto parts = kl_parts(decay[i], kl_eps);
        const R log_odds = log_from_split(parts.log_argument, parts.exponent);
        g = g + kl * kl_gradient(parts.variance, log_odds, parts.correction, s[i], kl_offset);
        if constexpr (has_value) {
          const R term = oes::kl_value(decay[i], log_odds, s[i], kl_eps, log_density, log_rest);
          kl_sum += i < four.count ? static_cast<double>(term.value) : 0.0;
        }
      }
      first[i] = first[i] + (g - first[i]) * beta1_rest;
      second[i] = second[i] * beta2 + g * g * beta2_rest;
      s[i] = s[i] - adam_step<T>(first[i], second[i], corrections, a.adam.eps);
    }
    store(a.exp_avg + row, first, four);
    store(a.exp_avg_sq + row, second, four);
    store(a.logits + row, s, four);
  }
  if constexpr (has_value) {
    add_kl_value(a, network, kl_sum);
  }
}

} // namespace

int64_t kl_blocks(int64_t numel) {
  return blocks_of(numel);
}

template <typename T>
void mask_update(MaskUpdate<T> a, cudaStream_t stream) {
  if (a.numel == 0) {
    return;
  }
  a.aligned = aligned(a.numel, a.networks, sizeof(T), kVectorBytes, {a.grad, a.w0, a.logits, a.exp_avg, a.exp_avg_sq});
  if (a.kl_value != nullptr) {
    const size_t shared_bytes = kWarps * sizeof(double) + sizeof(unsigned);
    const Launch over = launch_over(a.numel, a.networks, stream, shared_bytes);
    launch(mask_update_kernel<T, Kl::kGradientAndValue>, "mask_update with the KL value", over, a);
  } else if (a.kl != 0) {
    launch(mask_update_kernel<T, Kl::kGradient>, "mask_update", launch_over(a.numel, a.networks, stream), a);
  } else {
    launch(mask_update_kernel<T, Kl::kNone>, "mask_update without KL", launch_over(a.numel, a.networks, stream), a);
  }
}

template void mask_update(MaskUpdate<float>, cudaStream_t);
template void mask_update(MaskUpdate<double>, cudaStream_t);

} // namespace oes::cuda::mask
