// A batch norm of a chain: its spec, and what the last evaluation has found of its input.
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
  ChainNorm(const NormSpec& spec, int64_t channels);

  // From the moments of the input, and the weights, what the prologue of the next reader needs.
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

  std::vector<T> scale, shift, mean; // [channels], see norm::Prologue
  std::vector<T> a, b, c; // see norm::PrologueGrad

 private:
  NormSpec spec_;
  std::vector<double> rstd_;
  std::vector<T> constants_;
};

} // namespace oes::chain
