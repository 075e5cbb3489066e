#include "cpu/chain/conv_weights.h"

namespace oes::chain {

KeptWeights kept_weights(const ConvSpec& spec, int64_t inputs) {
  KeptWeights kept{spec.taps, spec.weights};
  if (spec.first_weight < 0) {
    return kept;
  }
  const int64_t kernel_size = spec.kernel_rows * spec.kernel_columns;
  for (int64_t t = 0; t < spec.outputs * inputs * kernel_size; ++t) {
    const int64_t uv = t % kernel_size, oc = t / kernel_size;
    kept.taps.insert(kept.taps.end(), {oc / inputs, oc % inputs, uv / spec.kernel_columns, uv % spec.kernel_columns});
    kept.indices.push_back(spec.first_weight + t);
  }
  return kept;
}

template <typename T>
AllWeights<T>::AllWeights(const ConvSpec& spec, int64_t inputs) : first_(spec.first_weight) {
  if (first_ >= 0) {
    return;
  }
  const int64_t numel = spec.outputs * inputs * spec.kernel_rows * spec.kernel_columns;
  weights_.assign(numel, T(0));
  grads_.resize(numel);
  indices_ = spec.weights;
  for (size_t t = 0; t < indices_.size(); ++t) {
    const int64_t* tap = &spec.taps[4 * t];
    positions_.push_back(((tap[0] * inputs + tap[1]) * spec.kernel_rows + tap[2]) * spec.kernel_columns + tap[3]);
  }
}

template <typename T>
const T* AllWeights<T>::read(const T* weights) {
  if (first_ >= 0) {
    return weights + first_;
  }
  for (size_t t = 0; t < indices_.size(); ++t) {
    weights_[positions_[t]] = weights[indices_[t]];
  }
  return weights_.data();
}

template class AllWeights<float>;
template class AllWeights<double>;

} // namespace oes::chain
