// The weights of a convolution in the flat vector, as its spec names them: one by one, or all from one index on.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/chain_specs.h"

namespace oes::chain {

// The kept weights one by one.
struct KeptWeights {
  Indices taps; // (o, c, u, v) of each
  Indices indices; // into the flat vector

  int64_t count() const {
    return static_cast<int64_t>(indices.size());
  }
};

KeptWeights kept_weights(const ConvSpec& spec, int64_t inputs);

// All weights [outputs, inputs, kernel rows, kernel columns], those that are not kept being zero.
template <typename T>
class AllWeights {
 public:
  AllWeights(const ConvSpec& spec, int64_t inputs);

  // From the flat vector; there until the next call.
  const T* read(const T* weights);

  // Adds gradients to the flat vector: calls add(to) for `to` of the shape of all weights, to be added to.
  template <typename F>
  void add_grads(T* grad_weights, const F& add) {
    if (first_ >= 0) {
      add(grad_weights + first_);
      return;
    }
    std::fill(grads_.begin(), grads_.end(), T(0));
    add(grads_.data());
    for (size_t t = 0; t < indices_.size(); ++t) {
      grad_weights[indices_[t]] += grads_[positions_[t]];
    }
  }

 private:
  int64_t first_; // index of the first where all are kept, else -1
  Indices indices_, positions_; // of the kept ones: in the flat vector, in all weights
  std::vector<T> weights_, grads_;
};

} // namespace oes::chain
