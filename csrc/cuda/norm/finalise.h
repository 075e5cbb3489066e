// What the last block of a launch does with the sums that all blocks have left: they are added in a fixed order, so
// that every run gives the same bits, and no launch of its own is needed. Loops stay rolled: unrolled they would be
// most of a kernel's code, take most of its compile time, and make it spill registers.
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

template <typename T>
__device__ __forceinline__ T shift_of(const Shift<T>& s, const T* weights, int64_t network, int output) {
  T sum = s.bias[output] < 0 ? T(0) : weights[s.bias[output]];
#pragma unroll 1
  for (int t = s.first[output]; t < s.first[output + 1]; ++t) {
    sum += weights[s.taps[2 * t]] * s.factor * s.constants[network * s.count + s.taps[2 * t + 1]];
  }
  return sum;
}

enum class FinaliseKind { kNone, kNormForward, kNormBackward, kLoss, kShiftBackward };

// What is done, and with what. Weights and everything indexed by network is that of the block's network.
template <typename T>
struct Finalise {
  FinaliseKind kind = FinaliseKind::kNone;
  int channels = 0, chunks = 0;
  int64_t pixels = 0; // of a channel
  double* partials = nullptr; // [networks, channels, chunks, kPartialNumbers]
  unsigned* ticket = nullptr; // [networks], 0 between launches
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

// Mean and sum of squares about it of pixels (Chan, Golub and LeVeque 1983).
struct Moments {
  double count = 0, mean = 0, squares = 0;

  __device__ __forceinline__ void add(double n, double other_mean, double other_squares) {
    if (n == 0) {
      return;
    }
    const double total = count + n, delta = other_mean - mean;
    mean += delta * n / total;
    squares += other_squares + delta * delta * count * n / total;
    count = total;
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
__device__ void norm_forward(const Finalise<T>& f, int64_t network) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const T* weights = f.weights + network * f.weights_stride;
#pragma unroll 1
  for (int channel = warp; channel < f.channels; channel += warps) {
    const double* partials = f.partials + (network * f.channels + channel) * f.chunks * kPartialNumbers;
    Moments moments;
#pragma unroll 1
    for (int chunk = lane; chunk < f.chunks; chunk += 32) {
      const double* of = partials + chunk * kPartialNumbers;
      moments.add(of[0], of[1], of[2]);
    }
    for (int distance = 16; distance > 0; distance /= 2) {
      const double count = __shfl_down_sync(0xffffffffu, moments.count, distance);
      const double mean = __shfl_down_sync(0xffffffffu, moments.mean, distance);
      const double squares = __shfl_down_sync(0xffffffffu, moments.squares, distance);
      moments.add(count, mean, squares);
    }
    if (lane != 0) {
      continue;
    }
    const double variance = moments.squares / moments.count;
    const double rstd = 1 / std::sqrt(variance + f.eps);
    const double gamma = f.gamma[channel] < 0 ? 1 : static_cast<double>(weights[f.gamma[channel]]);
    const int64_t at = network * f.channels + channel;
    T* numbers = f.prologue + at * kPrologueNumbers + (f.second ? 3 : 0);
    f.rstd[at] = rstd;
    numbers[0] = static_cast<T>(moments.mean);
    numbers[1] = static_cast<T>(gamma * rstd);
    numbers[2] = f.beta[channel] < 0 ? T(0) : weights[f.beta[channel]];
    if (f.running_mean != nullptr) {
      const double count = moments.count * f.copies;
      const double added = f.second ? 0 : static_cast<double>(shift_of(f.shift, weights, network, channel));
      move_running(
          f, network * f.running_stride + f.stats_index[channel], moments.mean + added, variance * count / (count - 1));
    }
  }
#pragma unroll 1
  for (int i = threadIdx.x; f.running_mean != nullptr && i < f.tracked_count; i += blockDim.x) {
    T value = T(0);
    if (f.tracked[i] >= 0) {
      value = f.second ? f.constants_before[network * f.constants_before_count + f.tracked[i]]
                       : shift_of(f.shift, weights, network, f.channels + f.tracked[i]);
    }
    move_running(f, network * f.running_stride + f.tracked_stats_index[i], static_cast<double>(value), 0);
  }
#pragma unroll 1
  for (int i = threadIdx.x; i < f.constants_count; i += blockDim.x) {
    f.constants[network * f.constants_count + i] = activate(f.act, f.slope, weights[f.betas[i]]);
  }
}

// The two sums of a channel, by one warp, in a fixed order; in lane 0.
template <typename T>
__device__ __forceinline__ void channel_sums(const Finalise<T>& f, int64_t network, int channel, double (&sums)[2]) {
  const double* partials = f.partials + (network * f.channels + channel) * f.chunks * kPartialNumbers;
  sums[0] = sums[1] = 0;
#pragma unroll 1
  for (int chunk = threadIdx.x % 32; chunk < f.chunks; chunk += 32) {
    sums[0] += partials[chunk * kPartialNumbers];
    sums[1] += partials[chunk * kPartialNumbers + 1];
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    sums[0] += __shfl_down_sync(0xffffffffu, sums[0], distance);
    sums[1] += __shfl_down_sync(0xffffffffu, sums[1], distance);
  }
}

template <typename T>
__device__ void norm_backward(const Finalise<T>& f, int64_t network) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  T* grad_weights = f.grad_weights + network * f.weights_stride;
#pragma unroll 1
  for (int channel = warp; channel < f.channels; channel += warps) {
    double sums[2];
    channel_sums(f, network, channel, sums);
    if (lane != 0) {
      continue;
    }
    const int64_t at = network * f.channels + channel;
    const T* numbers = f.prologue + at * kPrologueNumbers + (f.second ? 3 : 0);
    const double rstd = f.rstd[at], factor = static_cast<double>(numbers[1]), n = static_cast<double>(f.pixels);
    T* grads = f.grads + at * kGradNumbers;
    grads[0] = numbers[0];
    grads[1] = numbers[1];
    grads[2] = static_cast<T>(-factor * rstd * rstd * sums[1] / n);
    grads[3] = static_cast<T>(-factor * sums[0] / n);
    if (f.gamma[channel] >= 0) {
      grad_weights[f.gamma[channel]] += static_cast<T>(sums[1] * rstd);
    }
    if (f.beta[channel] >= 0) {
      grad_weights[f.beta[channel]] += static_cast<T>(sums[0]);
    }
  }
}

// Mean squared error from the sums of squared errors of every output.
template <typename T>
__device__ void mean_loss(const Finalise<T>& f, int64_t network) {
  double total = 0;
#pragma unroll 1
  for (int channel = 0; threadIdx.x < 32 && channel < f.channels; ++channel) {
    double sums[2];
    channel_sums(f, network, channel, sums);
    total += sums[0];
  }
  if (threadIdx.x == 0) {
    f.loss[network] = static_cast<T>(total / (static_cast<double>(f.channels) * static_cast<double>(f.pixels)));
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
    channel_sums(f, network, output, sums);
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

// Called by all threads of every block, `blocks` of them a network, when its partials are written.
template <typename T>
__device__ void finalise(const Finalise<T>& f, int64_t network, unsigned blocks, unsigned* shared) {
  if (f.kind == FinaliseKind::kNone) {
    return;
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    *shared = atomicAdd(f.ticket + network, 1u);
  }
  __syncthreads();
  if (*shared != blocks - 1) {
    return;
  }
  __threadfence();
  if (threadIdx.x == 0) {
    f.ticket[network] = 0;
  }
  switch (f.kind) {
    case FinaliseKind::kNormForward:
      norm_forward(f, network);
      break;
    case FinaliseKind::kNormBackward:
      norm_backward(f, network);
      break;
    case FinaliseKind::kLoss:
      mean_loss(f, network);
      break;
    default:
      shift_backward(f, network);
  }
}

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

} // namespace oes::cuda::norm
