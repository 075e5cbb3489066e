#include "cpu/chain/chain_norm.h"

#include <algorithm>
#include <cmath>

#include "cpu/norm/moments.h"

namespace oes::chain {

template <typename T>
ChainNorm<T>::ChainNorm(const NormSpec& spec, int64_t channels)
    : scale(channels),
      shift(channels),
      mean(channels),
      a(channels),
      b(channels),
      c(channels),
      spec_(spec),
      rstd_(channels),
      constants_(spec.constants.size()) {}

template <typename T>
void ChainNorm<T>::forward(
    const ChannelSums& moments, int64_t pixels, const T* weights, const NormInput<T>& input,
    const RunningStats<T>& running) {
  const bool updates = running.mean != nullptr && spec_.tracks;
  const double momentum = spec_.momentum;
  for (size_t channel = 0; channel < scale.size(); ++channel) {
    norm::Merged all;
    for (int64_t chunk = 0; chunk < moments.chunks; ++chunk) {
      const double* of_chunk = moments.at(channel, chunk);
      const int64_t count = std::min(moments.chunk_pixels, pixels - chunk * moments.chunk_pixels);
      all.add(static_cast<double>(count), of_chunk[0], of_chunk[1]);
    }
    const double variance = all.squares / all.count;
    const double rstd = 1 / std::sqrt(variance + spec_.eps);
    const double gamma = spec_.gamma[channel] < 0 ? 1 : static_cast<double>(weights[spec_.gamma[channel]]);
    const double beta = spec_.beta[channel] < 0 ? 0 : static_cast<double>(weights[spec_.beta[channel]]);
    rstd_[channel] = rstd;
    mean[channel] = static_cast<T>(all.mean);
    scale[channel] = static_cast<T>(gamma * rstd);
    shift[channel] = static_cast<T>(beta);
    if (updates) {
      const double count = all.count * static_cast<double>(spec_.copies);
      const double added = input.shift == nullptr ? 0 : static_cast<double>(input.shift[channel]);
      T& m = running.mean[spec_.stats_index[channel]];
      T& v = running.var[spec_.stats_index[channel]];
      m = static_cast<T>((1 - momentum) * m + momentum * (all.mean + added));
      v = static_cast<T>((1 - momentum) * v + momentum * variance * count / (count - 1));
    }
  }
  for (size_t i = 0; updates && i < spec_.tracked.size(); ++i) {
    const int64_t constant = spec_.tracked[i];
    const T value = constant < 0 ? T(0) : input.constants[constant];
    T& m = running.mean[spec_.tracked_stats_index[i]];
    T& v = running.var[spec_.tracked_stats_index[i]];
    m = static_cast<T>((1 - momentum) * m + momentum * value);
    v = static_cast<T>((1 - momentum) * v);
  }
  for (size_t i = 0; i < spec_.constants.size(); ++i) {
    constants_[i] = norm::with_act(spec_.act, [&](auto act) {
      return norm::activate<act.value>(weights[spec_.constants[i]], static_cast<T>(spec_.slope));
    });
  }
}

template <typename T>
void ChainNorm<T>::backward(const ChannelSums& sums, int64_t pixels, T* grad_weights) {
  for (size_t channel = 0; channel < scale.size(); ++channel) {
    double sum = 0, product = 0;
    for (int64_t chunk = 0; chunk < sums.chunks; ++chunk) {
      const double* of_chunk = sums.at(channel, chunk);
      sum += of_chunk[0];
      product += of_chunk[1];
    }
    const double rstd = rstd_[channel], factor = static_cast<double>(scale[channel]);
    const auto n = static_cast<double>(pixels);
    const double slope = -factor * rstd * rstd * product / n;
    a[channel] = scale[channel];
    b[channel] = static_cast<T>(slope);
    c[channel] = static_cast<T>(-factor * sum / n);
    if (spec_.gamma[channel] >= 0) {
      grad_weights[spec_.gamma[channel]] += static_cast<T>(product * rstd);
    }
    if (spec_.beta[channel] >= 0) {
      grad_weights[spec_.beta[channel]] += static_cast<T>(sum);
    }
  }
}

template class ChainNorm<float>;
template class ChainNorm<double>;

} // namespace oes::chain
