// A batch norm of a chain: its spec, and what the last evaluation has found of its input. Where no norm is behind a
// value, one without statistics stands for it, which adds what the value has in common and activates.
#pragma once

#include <cstdint>
#include <vector>

#include "common/chain_specs.h"
#include "cpu/norm/prologue.h"

namespace oes::chain {

// Two numbers for each channel from each chunk of an image, in the order of whoever has left them.
struct ChannelSums {
  const double* sums;
  int64_t chunks, next_chunk, next_channel; // in pairs
  int64_t chunk_pixels; // of all but the last

  const double* at(int64_t channel, int64_t chunk) const {
    return sums + 2 * (channel * next_channel + chunk * next_chunk);
  }
};

// What a batch norm reads beside the varying channels: what the convolution adds to each of these (nullptr: nothing),
// and the values of the constant channels.
template <typename T>
struct NormInput {
  const T* shift;
  const T* constants;
};

// Where running statistics are updated; or nullptr.
template <typename T>
struct RunningStats {
  T *mean, *var;
};

template <typename T>
class ChainNorm {
 public:
  // `groups`: of channels that share their statistics, all of them in one order; 0: each has its own.
  ChainNorm(const NormSpec& spec, int64_t channels, int64_t groups = 0);
  // Without statistics, for so many constant channels.
  ChainNorm(Act act, double slope, int64_t channels, int64_t constants);

  // The constants are read as planes too, behind the other channels, of an input that is zero there. `before_second`:
  // another norm follows, which makes them.
  void add_planes(int64_t planes, bool before_second);

  // Whether it takes the statistics of its input.
  bool normalises() const {
    return normalises_;
  }
  // Whether what is added to all pixels of the input changes the result.
  bool passes_shift() const {
    return !normalises_ || groups_ > 0;
  }
  // What constant channels of the input are: passed on, else the result has those of this norm.
  bool passes_constants() const {
    return !normalises_;
  }

  // From the moments of the input, and the weights, what the prologue of the next reader needs. Without statistics no
  // moments are read.
  void forward(
      const ChannelSums& moments, int64_t pixels, const T* weights, const NormInput<T>& input,
      const RunningStats<T>& running);

  // From the sums of the gradient of the result, and of that times the centred input, what the gradient of the input
  // is: a * grad + b * (input - mean) + c. Adds the gradients of its weights.
  void backward(const ChannelSums& sums, int64_t pixels, T* grad_weights);

  const NormSpec& spec() const {
    return spec_;
  }
  const std::vector<T>& constants() const { // values of the constant channels of the result
    return constants_;
  }

  std::vector<T> scale, shift, mean; // [channels + planes], see norm::Prologue
  std::vector<T> a, b, c; // see norm::PrologueGrad
  std::vector<double> shift_grads; // [channels + planes], where it passes a shift

 private:
  void forward_groups(const ChannelSums& moments, int64_t pixels, const T* weights, const NormInput<T>& input);
  void backward_groups(const ChannelSums& sums, int64_t pixels, T* grad_weights);

  NormSpec spec_;
  bool normalises_ = true, before_second_ = false;
  int64_t channels_, planes_ = 0, groups_ = 0;
  std::vector<double> rstd_, channel_mean_; // the latter of groups alone
  std::vector<T> constants_;
};

} // namespace oes::chain
