// What the last block of a group of channels does with the sums that all its blocks have left: they are added in a
// fixed order, so that every run gives the same bits, and no launch of its own is needed. One block for all channels
// would take them one after the other, each a chain of reads: up to 100 us on an H100. Loops stay rolled: unrolled they
// would be most of a kernel's code, take most of its compile time, and make it spill registers.
#pragma once

#include "cuda/norm/prologue.h"

namespace oes::cuda::norm {

constexpr int kPartialNumbers = 3; // of a channel and a chunk of its pixels

// What a convolution adds to all pixels of an output: its bias, and what constant input channels add. Outputs that vary
// come first, then the constant ones whose running statistics are kept.
template <typename T>
struct Shift {
  const int* bias; // [outputs]: index of a weight or -1
  const int* first; // [outputs + 1]: of each output's taps
  const int* taps; // (index of the weight, number of the constant)
  const int* betas; // of each constant: index of the beta that it is the activation of
  const T* constants; // [networks, count]: of the image that is read
  int count;
  T factor;
  T slope; // of the constants' activation
  Act act;
};

// By a warp, whose lanes share the taps: each would wait for two reads in turn.
template <typename T>
__device__ __forceinline__ T shift_of(const Shift<T>& s, const T* weights, int64_t network, int output) {
  const int lane = threadIdx.x % 32, bias = s.bias[output];
  T sum = T(0);
#pragma unroll 1
  for (int t = s.first[output] + lane; t < s.first[output + 1]; t += 32) {
    sum += weights[s.taps[2 * t]] * s.factor * s.constants[network * s.count + s.taps[2 * t + 1]];
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  }
  return bias < 0 ? sum : weights[bias] + sum;
}

enum class FinaliseKind { kNone, kNormForward, kNormBackward, kLoss, kShiftBackward };

// What is done, and with what. Weights and everything indexed by network is that of the block's network.
template <typename T>
struct Finalise {
  FinaliseKind kind = FinaliseKind::kNone;
  int channels = 0, chunks = 0;
  int64_t pixels = 0; // of a channel
  double* partials = nullptr; // [networks, channels, chunks, kPartialNumbers]
  unsigned* tickets = nullptr; // [networks, tickets_stride], one for each group of channels; 0 between launches
  int64_t tickets_stride = 0;
  const T* weights = nullptr; // [networks, weights_stride]
  T* grad_weights = nullptr; // [networks, weights_stride]
  int64_t weights_stride = 0;

  // Of a norm.
  const int *gamma = nullptr, *beta = nullptr; // [channels]: index of a weight or -1
  T* prologue = nullptr; // [networks, channels, kPrologueNumbers]
  T* grads = nullptr; // [networks, channels, kGradNumbers]
  double* rstd = nullptr; // [networks, channels]
  bool second = false;
  double eps = 0, momentum = 0, copies = 1;
  T *running_mean = nullptr, *running_var = nullptr; // [networks, running_stride]; nullptr: left alone
  int64_t running_stride = 0;
  const int* stats_index = nullptr; // [channels]
  const int *tracked = nullptr, *tracked_stats_index = nullptr; // [tracked_count], see NormSpec
  int tracked_count = 0;
  const int* betas = nullptr; // [constants_count]: of the constant channels of the result
  T* constants = nullptr; // [networks, constants_count]
  int constants_count = 0;
  T slope = 0;
  Act act = Act::kLeaky;
  const T* constants_before = nullptr; // second norm: of the first, [networks, constants_before_count]
  int constants_before_count = 0;

  Shift<T> shift = {}; // of the convolution before the first norm, or of the last convolution
  T* loss = nullptr; // [networks]
};

// Sum over the threads of a block in a fixed order, in thread 0; `scratch` holds a number of every warp.
template <int kNumbers, typename T>
__device__ __forceinline__ void block_sums(T (&values)[kNumbers], T* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = (blockDim.x + 31) / 32;
#pragma unroll
  for (int i = 0; i < kNumbers; ++i) {
    for (int distance = 16; distance > 0; distance /= 2) {
      values[i] += __shfl_down_sync(0xffffffffu, values[i], distance);
    }
  }
  __syncthreads();
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) {
      scratch[warp * kNumbers + i] = values[i];
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) {
      values[i] = scratch[i];
#pragma unroll 1
      for (int w = 1; w < warps; ++w) {
        values[i] += scratch[w * kNumbers + i];
      }
    }
  }
}

// The channels whose sums a group of blocks has, and how many groups there are.
struct Channels {
  int first, count, group, groups;

  // Blocks of `each` channels, one after the other.
  __device__ __forceinline__ Channels(int group_, int groups_, int each, int channels)
      : first(group_ * each), count(min(each, channels - group_ * each)), group(group_), groups(groups_) {}
};

template <int kNumbers>
__device__ __forceinline__ void sums_over_lanes(double (&sums)[kNumbers]) {
  for (int distance = 16; distance > 0; distance /= 2) {
#pragma unroll
    for (int i = 0; i < kNumbers; ++i) {
      sums[i] += __shfl_down_sync(0xffffffffu, sums[i], distance);
    }
  }
}

// Count, mean and sum of squares about it of the pixels of a channel, by one warp, in a fixed order; in lane 0. Those
// of the chunks are taken about the mean of the first chunk, which is near.
struct Moments {
  double count, mean, squares;

  template <typename T>
  __device__ __forceinline__ Moments(const Finalise<T>& f, int64_t channel) {
    const double* partials = f.partials + channel * f.chunks * kPartialNumbers;
    const double pivot = partials[1];
    double sums[3] = {};
#pragma unroll 4
    for (int chunk = threadIdx.x % 32; chunk < f.chunks; chunk += 32) {
      const double* of = partials + chunk * kPartialNumbers;
      const double n = of[0], apart = of[1] - pivot;
      sums[0] += n;
      sums[1] += n * apart;
      sums[2] += of[2] + n * apart * apart;
    }
    sums_over_lanes(sums);
    count = sums[0];
    mean = pivot + sums[1] / count;
    squares = sums[2] - sums[1] * sums[1] / count;
    squares = squares < 0 ? 0 : squares;
  }
};

template <typename T>
__device__ void move_running(const Finalise<T>& f, int64_t at, double mean, double var) {
  T& m = f.running_mean[at];
  T& v = f.running_var[at];
  m = static_cast<T>((1 - f.momentum) * static_cast<double>(m) + f.momentum * mean);
  v = static_cast<T>((1 - f.momentum) * static_cast<double>(v) + f.momentum * var);
}

// One warp for each channel.
template <typename T>
__device__ void norm_forward(const Finalise<T>& f, int64_t network, const Channels& channels) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const T* weights = f.weights + network * f.weights_stride;
#pragma unroll 1
  for (int channel = channels.first + warp; channel < channels.first + channels.count; channel += warps) {
    const int64_t at = network * f.channels + channel;
    // What does not wait for the sums is read before them.
    const int gamma_index = f.gamma[channel], beta_index = f.beta[channel];
    const double gamma = gamma_index < 0 ? 1 : static_cast<double>(weights[gamma_index]);
    const T beta = beta_index < 0 ? T(0) : weights[beta_index];
    const double added =
        f.second || f.running_mean == nullptr ? 0 : static_cast<double>(shift_of(f.shift, weights, network, channel));
    const Moments moments(f, at);
    if (lane != 0) {
      continue;
    }
    const double variance = moments.squares / moments.count;
    const double rstd = 1 / std::sqrt(variance + f.eps);
    T* numbers = f.prologue + at * kPrologueNumbers + (f.second ? 3 : 0);
    f.rstd[at] = rstd;
    numbers[0] = static_cast<T>(moments.mean);
    numbers[1] = static_cast<T>(gamma * rstd);
    numbers[2] = beta;
    if (f.running_mean != nullptr) {
      const double count = moments.count * f.copies;
      move_running(
          f, network * f.running_stride + f.stats_index[channel], moments.mean + added, variance * count / (count - 1));
    }
  }
  // What belongs to no channel is shared by the groups.
#pragma unroll 1
  for (int i = channels.group * warps + warp; f.running_mean != nullptr && i < f.tracked_count;
       i += channels.groups * warps) {
    T value = T(0);
    if (f.tracked[i] >= 0) {
      value = f.second ? f.constants_before[network * f.constants_before_count + f.tracked[i]]
                       : shift_of(f.shift, weights, network, f.channels + f.tracked[i]);
    }
    if (lane == 0) {
      move_running(f, network * f.running_stride + f.tracked_stats_index[i], static_cast<double>(value), 0);
    }
  }
#pragma unroll 1
  for (int i = channels.group * blockDim.x + threadIdx.x; i < f.constants_count; i += channels.groups * blockDim.x) {
    f.constants[network * f.constants_count + i] = activate(f.act, f.slope, weights[f.betas[i]]);
  }
}

// The two sums of a channel, by one warp, in a fixed order; in lane 0.
template <typename T>
__device__ __forceinline__ void channel_sums(const Finalise<T>& f, int64_t channel, double (&sums)[2]) {
  const double* partials = f.partials + channel * f.chunks * kPartialNumbers;
  sums[0] = sums[1] = 0;
#pragma unroll 4
  for (int chunk = threadIdx.x % 32; chunk < f.chunks; chunk += 32) {
    sums[0] += partials[chunk * kPartialNumbers];
    sums[1] += partials[chunk * kPartialNumbers + 1];
  }
  sums_over_lanes(sums);
}

template <typename T>
__device__ void norm_backward(const Finalise<T>& f, int64_t network, const Channels& channels) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  T* grad_weights = f.grad_weights + network * f.weights_stride;
#pragma unroll 1
  for (int channel = channels.first + warp; channel < channels.first + channels.count; channel += warps) {
    const int64_t at = network * f.channels + channel;
    // What does not wait for the sums is read before them.
    const T* numbers = f.prologue + at * kPrologueNumbers + (f.second ? 3 : 0);
    const T mean = numbers[0], scale = numbers[1];
    const int gamma = f.gamma[channel], beta = f.beta[channel];
    const double rstd = f.rstd[at], factor = static_cast<double>(scale), n = static_cast<double>(f.pixels);
    double sums[2];
    channel_sums(f, at, sums);
    if (lane != 0) {
      continue;
    }
    T* grads = f.grads + at * kGradNumbers;
    grads[0] = mean;
    grads[1] = scale;
    grads[2] = static_cast<T>(-factor * rstd * rstd * sums[1] / n);
    grads[3] = static_cast<T>(-factor * sums[0] / n);
    if (gamma >= 0) {
      grad_weights[gamma] += static_cast<T>(sums[1] * rstd);
    }
    if (beta >= 0) {
      grad_weights[beta] += static_cast<T>(sums[0]);
    }
  }
}

// Mean squared error from the sums of squared errors of every output, by the whole block. `scratch`: a number of every
// warp.
template <typename T>
__device__ void mean_loss(const Finalise<T>& f, int64_t network, double* scratch) {
  const int count = f.channels * f.chunks;
  const double* partials = f.partials + network * count * kPartialNumbers;
  double total[1] = {};
#pragma unroll 4
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    total[0] += partials[i * kPartialNumbers];
  }
  block_sums(total, scratch);
  if (threadIdx.x == 0) {
    f.loss[network] = static_cast<T>(total[0] / (static_cast<double>(f.channels) * static_cast<double>(f.pixels)));
  }
}

// Of a last convolution with no norm behind it: gradient of its bias and of what constant channels add. One thread: a
// beta takes part in many sums.
template <typename T>
__device__ void shift_backward(const Finalise<T>& f, int64_t network) {
  const T* weights = f.weights + network * f.weights_stride;
  T* grad_weights = f.grad_weights + network * f.weights_stride;
  const Shift<T>& s = f.shift;
#pragma unroll 1
  for (int output = 0; threadIdx.x < 32 && output < f.channels; ++output) {
    double sums[2];
    channel_sums(f, network * f.channels + output, sums);
    if (threadIdx.x != 0) {
      continue;
    }
    if (s.bias[output] >= 0) {
      grad_weights[s.bias[output]] += static_cast<T>(sums[0]);
    }
#pragma unroll 1
    for (int t = s.first[output]; t < s.first[output + 1]; ++t) {
      const int weight = s.taps[2 * t], constant = s.taps[2 * t + 1], beta = s.betas[constant];
      const double sum = sums[0] * static_cast<double>(s.factor);
      grad_weights[weight] += static_cast<T>(sum * static_cast<double>(s.constants[network * s.count + constant]));
      const T slope = activate_grad(s.act, s.slope, weights[beta]);
      grad_weights[beta] += static_cast<T>(sum * static_cast<double>(weights[weight]) * static_cast<double>(slope));
    }
  }
}

// Called by all threads of every block when its partials are written: of `blocks` blocks to a group of channels the
// last one does what is to be done for them, and what needs all channels the last one of all. `scratch`: 8 bytes a
// warp.
template <typename T>
__device__ void finalise(
    const Finalise<T>& f, int64_t network, const Channels& channels, unsigned blocks, unsigned* scratch) {
  if (f.kind == FinaliseKind::kNone) {
    return;
  }
  const bool by_group = f.kind == FinaliseKind::kNormForward || f.kind == FinaliseKind::kNormBackward;
  unsigned* ticket = f.tickets + network * f.tickets_stride + (by_group ? channels.group : 0);
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    *scratch = atomicAdd(ticket, 1u);
  }
  __syncthreads();
  if (*scratch != (by_group ? blocks : blocks * channels.groups) - 1) {
    return;
  }
  __threadfence();
  if (threadIdx.x == 0) {
    *ticket = 0;
  }
  switch (f.kind) {
    case FinaliseKind::kNormForward:
      norm_forward(f, network, channels);
      break;
    case FinaliseKind::kNormBackward:
      norm_backward(f, network, channels);
      break;
    case FinaliseKind::kLoss:
      mean_loss(f, network, reinterpret_cast<double*>(scratch));
      break;
    default:
      shift_backward(f, network);
  }
}

} // namespace oes::cuda::norm
